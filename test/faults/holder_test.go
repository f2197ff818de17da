package faults_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

// The holder is the parent of every container and keeps what their streams need: its death is
// promised less than the worker's. This is its table: who dies with it × what a container does then.
func TestHolderDeath(t *testing.T) {
	w := newWorld(t, "builtin")
	for _, victims := range []string{"holder", "holder and worker", "holder, worker and server"} {
		for _, c := range holderCases() {
			t.Run(victims+": "+c.name, func(t *testing.T) {
				w.reset(t)
				defer w.recover(t)
				w.config.Tty = c.terminal
				c.prepare(w)
				pid := 0
				if !c.created {
					pid = w.n.ContainerPid("line $i end")
				}
				restart := w.killHolder(victims, func() {
					if c.meanwhile != nil {
						c.meanwhile(t, pid)
					}
				})
				restart()
				c.check(w, pid, victims == "holder")
				w.removeAll()
				w.nothingIsLeft()
			})
		}
	}
}

// holderCase is a container in a situation; check is told whether the worker had the chance to hand
// over to a new holder.
type holderCase struct {
	name      string
	terminal  bool
	created   bool // it was not started
	prepare   func(w *world)
	meanwhile func(t *testing.T, pid int) // what happens while nobody keeps it
	check     func(w *world, pid int, handedOver bool)
}

func holderCases() []holderCase {
	return []holderCase{
		{name: "a container that was created", created: true, prepare: withContainer, check: func(w *world, _ int, _ bool) { w.use() }},
		{name: "a running container", prepare: running, check: (*world).livesOn},
		{name: "a terminal", terminal: true, prepare: running, check: (*world).terminalLivesOn},
		{name: "a container that ends meanwhile", prepare: running, meanwhile: func(t *testing.T, pid int) { node.Terminate(t, pid) }, check: (*world).endedMeanwhile},
	}
}

// killHolder kills the holder and who else is named, with no moment for one to see the other die.
// The returned function brings back what does not come back by itself.
func (w *world) killHolder(victims string, meanwhile func()) (restart func()) {
	w.t.Helper()
	holder, workerPid := w.n.Keeper()
	if holder == 0 || workerPid == 0 {
		w.t.Fatalf("holder %d, worker %d", holder, workerPid)
	}
	pids := []int{holder}
	if strings.Contains(victims, "worker") {
		pids = append(pids, workerPid)
	}
	withServer := strings.Contains(victims, "server")
	if withServer {
		w.n.Kill()
	}
	for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		for _, pid := range pids {
			if err := syscall.Kill(pid, sig); err != nil {
				w.t.Fatalf("%v to keeper %d: %v", sig, pid, err)
			}
		}
	}
	meanwhile()
	return func() {
		if withServer {
			w.n.Restart()
		}
		w.n.Eventually("a new holder", func() bool { h, k := w.n.Keeper(); return h > 0 && k > 0 && h != holder })
	}
}

// livesOn wants the same process to run, and its output to go on.
func (w *world) livesOn(pid int, handedOver bool) {
	w.t.Helper()
	s := w.n.Container(w.container)
	if s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || w.n.ContainerPid("line $i end") != pid {
		w.t.Fatalf("the container is %v", s.State)
	}
	before := len(w.logged())
	w.n.Eventually("output goes on", func() bool { return len(w.logged()) > before+3 })
	if handedOver {
		w.checkLog()
	} else {
		w.checkOrder()
	}
	if out := w.n.Exec(w.container, "echo", "alive"); out != "alive\n" {
		w.t.Errorf("exec says %q", out)
	}
	w.n.StopContainer(w.container, 30*time.Second)
	// Who is no child of the new holder is asked for at the kernel, which older ones do not answer.
	if s = w.n.Container(w.container); s.ExitCode != 7 && (s.ExitCode != 255 || s.Reason != "Unknown") {
		w.t.Errorf("it ended with code %d, reason %s", s.ExitCode, s.Reason)
	}
}

// checkOrder wants no line torn or doubled; some may be missing.
func (w *world) checkOrder() {
	w.t.Helper()
	last := -1
	for _, line := range w.logged() {
		var n int
		if _, err := fmt.Sscanf(line, "line %d end", &n); err != nil || n <= last {
			w.t.Errorf("after line %d the log has %q", last, line)
			return
		}
		last = n
	}
}

// terminalLivesOn: with the last descriptor of its master a terminal hangs up its session.
func (w *world) terminalLivesOn(pid int, handedOver bool) {
	w.t.Helper()
	if handedOver {
		w.livesOn(pid, handedOver)
		return
	}
	w.saidInTheLog()
	// The first process of a PID namespace does not die of a SIGHUP; what it writes fails.
	w.n.StopContainer(w.container, 30*time.Second)
	if s := w.n.Container(w.container); s.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		w.t.Errorf("a container whose terminal is gone is %v after StopContainer", s.State)
	}
}

func (w *world) endedMeanwhile(int, bool) {
	w.t.Helper()
	s := w.n.Ended(w.container)
	if s.ExitCode != 7 && (s.ExitCode != 255 || s.Reason != "Unknown") {
		w.t.Errorf("it ended with code %d, reason %s; want 7, or 255 Unknown", s.ExitCode, s.Reason)
	}
}

// saidInTheLog wants the keeper to say what went with the holder.
func (w *world) saidInTheLog() {
	w.t.Helper()
	w.n.Eventually("the keeper says what was lost", func() bool {
		return strings.Contains(node.ReadFile(w.t, filepath.Join(w.n.State, "keeper", "keeper.log")), "lost with the holder")
	})
}
