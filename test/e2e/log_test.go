package e2e_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

// TestRotationLosesNoLine does what the kubelet does: it renames the log and asks for a new one.
func TestRotationLosesNoLine(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	pod, container := n.Launch(n.Sandbox("rotates"), node.Container("main", ref, "sh", "-c",
		`i=0; while :; do echo "n=$i"; i=$((i+1)); done`))
	path := n.Container(container).LogPath
	var files []string
	for i := range 3 {
		n.Eventually("there is something to rotate", func() bool { return logLines(n, path) > 1000 })
		rotated := fmt.Sprintf("%s.%d", path, i)
		if err := os.Rename(path, rotated); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Runtime.ReopenContainerLog(n.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: container}); err != nil {
			t.Fatalf("reopen log: %v", err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("after the call the new log is not there: %v", err)
		}
		files = append(files, rotated)
	}
	n.StopContainer(container, 0)
	var all strings.Builder
	for _, f := range append(files, path) {
		all.WriteString(node.ReadFile(t, f))
	}
	next := 0
	for record := range strings.Lines(all.String()) {
		if want := fmt.Sprintf(" stdout F n=%d\n", next); !strings.HasSuffix(record, want) {
			t.Fatalf("record %q, want one that ends with %q", record, want)
		}
		next++
	}
	n.RemovePod(pod)
}

func TestLogRecords(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	const script = `echo plain; echo problem >&2; printf unfinished; echo; head -c 40000 /dev/zero | tr '\0' x; echo; printf end`
	pod, container := n.Launch(n.Sandbox("writes"), node.Container("main", ref, "sh", "-c", script))
	n.Ended(container)
	record := regexp.MustCompile(`^(\S+) (stdout|stderr) ([PF]) (.*)$`)
	var shape []string
	for line := range strings.Lines(n.ReadLog(container)) {
		fields := record.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if fields == nil {
			t.Fatalf("malformed record %q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, fields[1]); err != nil {
			t.Errorf("time stamp: %v", err)
		}
		if len(fields[4]) > 100 {
			fields[4] = fmt.Sprintf("%d×x", strings.Count(fields[4], "x"))
		}
		shape = append(shape, fields[2]+" "+fields[3]+" "+fields[4])
	}
	for _, want := range []string{
		"stdout F plain", "stderr F problem", "stdout F unfinished", "stdout P 16384×x", "stdout F 7232×x", "stdout P end",
	} {
		if !strings.Contains("\n"+strings.Join(shape, "\n")+"\n", "\n"+want+"\n") {
			t.Errorf("no record %q in:\n%s", want, strings.Join(shape, "\n"))
		}
	}
	n.RemovePod(pod)
}
