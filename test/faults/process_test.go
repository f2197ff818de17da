package faults_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

// little is what StopContainer may take beyond its grace period on a machine under load.
const little = 8 * time.Second

// stubborn is a container that does not end as it is told.
type stubborn struct {
	name   string
	script string
	change func(w *world)
	grace  time.Duration
	code   int32 // it ends with
	alone  bool  // its main process ends by itself
}

func stubborns() []stubborn {
	const second = time.Second
	return []stubborn{
		{name: "ignores SIGTERM", script: `trap '' TERM; echo up; while :; do sleep 1; done`, grace: 2 * second, code: 137},
		{name: "forks as long as it can", script: forkBomb, change: limitProcesses, grace: 2 * second, code: 137},
		{name: "leaves zombies", script: `for i in 1 2 3 4 5 6 7 8; do (exit $i) & done; echo up; exec sleep 1000`, grace: 2 * second, code: 137},
		{name: "has a daemon", script: `(setsid sh -c 'trap "" TERM; while :; do sleep 1; done' >/dev/null &); echo up; exec sleep 1000`, grace: 2 * second, code: 137},
		{name: "has a daemon in a shared PID namespace", script: `(setsid sh -c 'trap "" TERM; while :; do sleep 1; done' &); echo up; trap 'exit 7' TERM; while :; do sleep 0.1; done`, change: sharePID, grace: 20 * second, code: 7},
		{name: "ends before a child that holds its output", script: `echo up; (trap '' TERM; sleep 1000) & exit 5`, change: sharePID, code: 5, alone: true},
	}
}

// forkBomb fills the limit with processes that fork again and again.
const forkBomb = `trap '' TERM
(i=0; while [ $i -lt 50 ]; do (while :; do /bin/true; done) & i=$((i+1)); done) 2>/dev/null
echo up
exec sleep 1000`

// limitProcesses bounds the pod's cgroup, as the kubelet does.
func limitProcesses(w *world) {
	w.t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		own := filepath.Join(dir, w.sandbox.Linux.CgroupParent)
		if os.MkdirAll(own, 0o755) == nil && os.WriteFile(filepath.Join(own, "pids.max"), []byte("64"), 0) == nil {
			return
		}
	}
	w.t.Fatal("processes cannot be limited")
}

// removeLimits removes the pod's cgroup, as the kubelet does with what it made.
func (w *world) removeLimits() {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + w.sandbox.Linux.CgroupParent)
	for _, dir := range append(dirs, "/sys/fs/cgroup"+w.sandbox.Linux.CgroupParent) {
		_ = os.Remove(dir)
	}
}

// StopContainer returns in its grace period and a little more, whatever the processes do, with their
// true exit code; nothing of them is left, and no other pod waits.
func TestStubbornProcesses(t *testing.T) {
	w := newWorld(t, "builtin")
	for _, s := range stubborns() {
		t.Run(s.name, func(t *testing.T) {
			w.reset(t)
			defer w.recover(t)
			if s.change != nil {
				s.change(w)
			}
			w.config.Command = []string{"sh", "-c", s.script}
			withContainer(w)
			w.n.StartContainer(w.container)
			w.n.Eventually("it is up", func() bool { return len(w.logged()) > 0 })
			began := time.Now()
			if !s.alone {
				w.n.StopContainer(w.container, s.grace)
			}
			if got := w.n.Ended(w.container).ExitCode; got != s.code {
				t.Errorf("it ended with %d, want %d", got, s.code)
			}
			took := time.Since(began)
			if took > s.grace+little {
				t.Errorf("its end took %v, the grace period is %v", took, s.grace)
			}
			t.Logf("ended in %v, the grace period was %v", took.Round(time.Millisecond), s.grace)
			w.othersAreNotDelayed()
			w.removeAll()
			w.removeLimits()
			w.nothingIsLeft()
		})
	}
}

// A process in an uninterruptible wait outlives SIGKILL. StopContainer says so in time, nobody else
// waits, and when the kernel lets go of it all is as if it had ended at once.
func TestUninterruptibleProcess(t *testing.T) {
	w := newWorld(t, "builtin")
	w.reset(t)
	defer w.recover(t)
	f := newFuse(t)
	w.config.Mounts = []*runtimeapi.Mount{{HostPath: f.Dir, ContainerPath: "/volume"}}
	w.config.Command = []string{"sh", "-c", "echo up; exec cat /volume/hang"}
	withContainer(w)
	w.n.StartContainer(w.container)
	stuck := 0
	w.n.Eventually("it waits", func() bool {
		for _, p := range node.Processes(func(p node.Process) bool { return strings.Join(p.Command, " ") == "cat /volume/hang" }) {
			stuck = p.Pid
		}
		return stuck > 0
	})
	const grace = time.Second
	began := time.Now()
	_, err := w.n.Runtime.StopContainer(context.Background(), &runtimeapi.StopContainerRequest{ContainerId: w.container, Timeout: int64(grace.Seconds())})
	took := time.Since(began)
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "after SIGKILL") {
		t.Errorf("StopContainer answers %v", err)
	}
	if took > grace+10*time.Second+little {
		t.Errorf("StopContainer took %v", took)
	}
	t.Logf("StopContainer took %v", took.Round(time.Millisecond))
	if data, failed := os.ReadFile(fmt.Sprintf("/proc/%d/stat", stuck)); failed != nil || !strings.Contains(string(data), ") D ") {
		t.Errorf("the process is not uninterruptible: %q, %v", data, failed)
	}
	w.othersAreNotDelayed()
	f.end()
	if s := w.n.Ended(w.container); s.ExitCode != 137 {
		t.Errorf("it ended with %d", s.ExitCode)
	}
	w.removeAll()
	w.nothingIsLeft()
}
