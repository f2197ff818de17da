package docker_test

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/crilog"
	"gantry/internal/labdocker"
	"gantry/test/node"
)

// TestBoundsOfLogs covers what a pod says of its logs: the keeper writes those of Docker's containers, too.
func TestBoundsOfLogs(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			d := labdocker.Start(t, labdocker.Options{Version: v})
			n := node.Start(t, node.Options{Flags: []string{"--engine", "docker", "--docker-endpoint", d.Endpoint()}})
			image := d.Busybox()
			t.Run("a rate drops lines and counts them", func(t *testing.T) { rateOfLog(t, n.For(t), image) })
			t.Run("a full disk stops no container", func(t *testing.T) { fullDisk(t, n.For(t), image) })
		})
	}
}

// numbersOf reads a log of increasing numbers, and returns how many bytes of output it holds and the last number.
func numbersOf(t *testing.T, log string) (output int64, last int) {
	t.Helper()
	for line := range strings.Lines(node.ReadFile(t, log)) {
		e, err := crilog.Parse([]byte(line))
		if err != nil || e.Partial {
			t.Fatalf("after line %d: %v: %.100q", last, err, line)
		}
		n, err := strconv.Atoi(string(e.Content))
		if err != nil || n <= last {
			t.Fatalf("line %d is followed by %.100q", last, e.Content)
		}
		output, last = output+int64(len(e.Content))+1, n
	}
	return output, last
}

// written is what `seq last` writes.
func written(last int) (n int64) {
	for i := 1; i <= last; i++ {
		n += int64(len(strconv.Itoa(i))) + 1
	}
	return n
}

// countsWhatIsMissing waits until the status tells how much of the output up to last is not in the log.
func countsWhatIsMissing(n *node.Node, container string, last int) {
	n.T().Helper()
	var said string
	log := n.Container(container).LogPath
	logged, seen := numbersOf(n.T().(*testing.T), log)
	want := `"logDropped":` + strconv.FormatInt(written(last)-logged, 10)
	defer func() {
		if n.T().Failed() {
			n.T().Logf("%d bytes up to %d are logged, want %s: %s", logged, seen, want, said)
		}
	}()
	n.Eventually("what was dropped is counted", func() bool {
		r, err := n.Runtime.ContainerStatus(n.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: container, Verbose: true})
		if err != nil {
			n.T().Fatal(err)
		}
		said = r.Info["info"]
		return strings.Contains(strings.ReplaceAll(strings.ReplaceAll(said, " ", ""), "DroppedBytes", "Dropped"), want)
	})
}

func rateOfLog(t *testing.T, n *node.Node, image string) {
	s := n.Sandbox("rate")
	const rate, last = 100_000, 200_000
	s.Annotations = map[string]string{"gantry/log-rate": strconv.Itoa(rate)}
	began := time.Now()
	pod, container := n.Launch(s, node.Container("main", image, "seq", strconv.Itoa(last)))
	n.Ended(container)
	countsWhatIsMissing(n, container, last)
	logged, _ := numbersOf(t, n.Container(container).LogPath)
	if took := time.Since(began); logged > written(last)/2+int64(took.Seconds()*rate) {
		t.Errorf("%d of %d bytes are logged in %v", logged, written(last), took)
	}
	n.RemovePod(pod)
}

func fullDisk(t *testing.T, n *node.Node, image string) {
	s := n.Sandbox("full")
	s.Annotations = map[string]string{"gantry/log-full-wait": "200ms"}
	if err := os.MkdirAll(s.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("disk", s.LogDirectory, "tmpfs", 0, "size=128k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(s.LogDirectory, syscall.MNT_DETACH) })
	const last = 200_100
	script := "seq 200000; touch /written; while ! [ -e /go ]; do sleep 0.05; done; seq 200001 " + strconv.Itoa(last)
	pod, container := n.Launch(s, node.Container("main", image, "sh", "-c", script))
	// It writes on, though nothing can be logged: else it would never come to the end of its numbers.
	n.Eventually("the container has written", func() bool { return n.Exec(container, "sh", "-c", "ls /written || echo no") == "/written\n" })
	if err := syscall.Mount("disk", s.LogDirectory, "tmpfs", syscall.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	n.Exec(container, "touch", "/go")
	n.Ended(container)
	countsWhatIsMissing(n, container, last)
	if _, seen := numbersOf(t, n.Container(container).LogPath); seen != last {
		t.Errorf("the last line of the log is %d, want %d: it goes on when there is room", seen, last)
	}
	n.RemovePod(pod)
}

// TestBoundsOfLogsThatFollow: what cannot be done is refused by its name.
func TestBoundsOfLogsThatFollow(t *testing.T) {
	d := labdocker.Start(t, labdocker.Options{})
	n := node.Start(t, node.Options{Flags: []string{"--engine", "docker", "--docker-endpoint", d.Endpoint(), "--docker-logs", "api"}})
	image := d.Busybox()
	for name, value := range map[string]string{"gantry/log-rate": "1000", "gantry/log-size": "1000", "gantry/log-full-wait": "1s"} {
		s := n.Sandbox("follows")
		s.Annotations = map[string]string{name: value}
		r, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: s})
		if err != nil {
			t.Fatal(err)
		}
		_, err = n.Runtime.CreateContainer(n.Context(), &runtimeapi.CreateContainerRequest{
			PodSandboxId: r.PodSandboxId, Config: node.Container("main", image, idle...), SandboxConfig: s,
		})
		// Output never waits for a log that follows: a patience holds as it is.
		if name == "gantry/log-full-wait" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		} else if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v; want Unimplemented, and its name", name, err)
		}
		n.RemovePod(r.PodSandboxId)
	}
}
