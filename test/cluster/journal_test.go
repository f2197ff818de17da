package cluster_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"gantry/test/cluster/kube"
)

// explanation is a row of the document's table of complaints.
type explanation struct {
	who     string // kubelet or gantry
	when    string // "always", or "disturbed": while parts of the node are restarted and killed
	pattern *regexp.Regexp
}

// journal checks that every error and warning in the journals of kubelet, gantry and keeper is explained in
// the documentation.
type journal struct {
	all  []explanation
	read map[string]int // file to how much of it was checked
}

func newJournal(t testing.TB) *journal {
	t.Helper()
	j := &journal{read: map[string]int{}}
	for _, row := range table(t, "What the journals say") {
		if len(row) != 4 || row[0] != "kubelet" && row[0] != "gantry" || row[1] != "always" && row[1] != "disturbed" || row[3] == "" {
			t.Fatalf("%s: a row is not who, when, words and reason: %q", document, row)
		}
		j.all = append(j.all, explanation{who: row[0], when: row[1], pattern: like(row[2])})
	}
	return j
}

// check reads what was written since the last check.
func (j *journal) check(t *testing.T, c *kube.Cluster, disturbed bool) {
	t.Run("the journals have no complaint that is not explained", func(t *testing.T) {
		for _, n := range c.Nodes {
			j.file(t, "kubelet", n.Kubelet.Log, disturbed)
			j.file(t, "gantry", n.Gantry.Log, disturbed)
			said, err := n.Run("cat", "/run/gantry/keeper/keeper.log")
			if err != nil {
				t.Error(err)
			}
			for line := range strings.Lines(said) {
				j.judge(t, "gantry", "keeper: "+strings.TrimSpace(line), disturbed)
			}
		}
	})
}

func (j *journal) file(t *testing.T, who, path string, disturbed bool) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data[j.read[path]:])
	text = text[:strings.LastIndexByte(text, '\n')+1] // the last line may not be whole yet
	j.read[path] += len(text)
	lines := 0
	for line := range strings.Lines(text) {
		lines++
		if line = strings.TrimSpace(line); complaint(who, line) {
			j.judge(t, who, line, disturbed)
		}
	}
	t.Logf("%s: %d lines of %s", path, lines, who)
}

func (j *journal) judge(t *testing.T, who, line string, disturbed bool) {
	t.Helper()
	for _, e := range j.all {
		if e.who == who && (disturbed || e.when == "always") && e.pattern.MatchString(line) {
			return
		}
	}
	t.Errorf("%s: %.700s", who, line)
}

// klog's head of a line: severity, month and day.
var (
	klogLine      = regexp.MustCompile(`^[IWEF][0-9]{4} `)
	klogComplaint = regexp.MustCompile(`^[WEF][0-9]{4} `)
)

// complaint says whether a line is an error or a warning, of the kubelet only those that have to do with its
// runtime. What is not a line of the log's format is one: a program that panics does not use its log.
func complaint(who, line string) bool {
	if who == "kubelet" {
		return klogComplaint.MatchString(line) && ofRuntime.MatchString(line) || !klogLine.MatchString(line) && unformatted.MatchString(line)
	}
	if !strings.HasPrefix(line, "time=") {
		return line != ""
	}
	return strings.Contains(line, " level=WARN ") || strings.Contains(line, " level=ERROR ")
}

// ofRuntime are the words by which a line has to do with the runtime: the kubelet's files that call it, what it
// answers, and what is its own.
var ofRuntime = regexp.MustCompile(`remote_(runtime|image)\.go|rpc error|(?i:runtime|sandbox|pleg|image)|\bCRI\b|gantry\.sock`)

// unformatted is what the Go runtime says on its own.
var unformatted = regexp.MustCompile(`^(panic|fatal error|goroutine [0-9]+|runtime:|SIG[A-Z]+:)`)

func TestComplaints(t *testing.T) {
	for line, want := range map[string]bool{
		`E1129 20:00:00.000000  1 remote_runtime.go:1] "failed"`:                  true,
		`W1129 20:00:00.000000  1 x.go:1] "rpc error: code = x"`:                  true,
		`E1129 20:00:00.000000  1 node.go:1] "no such node"`:                      false,
		`I1129 20:00:00.000000  1 x.go:1] "E1129 is fine"`:                        false,
		`	continued text of a line before`:                                        false,
		`panic: nil`:                                                              true,
		`goroutine 1 [running]:`:                                                  true,
		`Flag --x has been deprecated`:                                            false,
		`E1129 20:00:00.000000  1 pod_workers.go:1] "CreatePodSandbox" pod="a/b"`: true,
	} {
		if got := complaint("kubelet", line); got != want {
			t.Errorf("%q: %t", line, got)
		}
	}
	for line, want := range map[string]bool{
		`time=2026-11-29T20:00:00Z level=INFO msg=x`:  false,
		`time=2026-11-29T20:00:00Z level=DEBUG msg=x`: false,
		`time=2026-11-29T20:00:00Z level=WARN msg=x`:  true,
		`time=2026-11-29T20:00:00Z level=ERROR msg=x`: true,
		`panic: nil`: true,
		`time=2026-11-29T20:00:00Z level=INFO msg="level=ERROR "`: true, // rather one too many
	} {
		if got := complaint("gantry", line); got != want {
			t.Errorf("%q: %t", line, got)
		}
	}
	if p := like("a … of b.c"); !p.MatchString("x a pod of b.c") || p.MatchString("a pod of bxc") {
		t.Error("… does not stand for anything, or a dot does")
	}
}
