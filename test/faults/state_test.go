package faults_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/leftovers"
	"gantry/test/node"
)

// The state directory's parts. It is on tmpfs, or the server mounts one there, and tmpfs has no errors; a part
// of it may still be somebody's file system.
var stateParts = []string{"keeper", "native", "bridge"}

// While everything that is asked of the state directory fails, containers go on, terminals too, and nothing
// is forgotten because it cannot be read: not by a new worker either. When the errors end, everything goes
// on without a restart.
func TestStateDirectoryWithErrors(t *testing.T) {
	w := &world{n: node.Prepare(t, node.Options{Runtime: "crun"}), t: t, dir: t.TempDir()}
	disk := w.stateOnFuse(t)
	w.n.Restart()
	w.image = w.n.Pull(node.Busybox(t))
	w.warmUpQuietly()
	before, err := leftovers.Take(t.Context(), w.n.Scope())
	if err != nil {
		t.Fatal(err)
	}
	lasting, terminal, ending := w.launch("lasting"), w.launchTerminal("terminal"), w.launch("ending")
	all := []*resident{lasting, terminal, ending}

	disk.fails.Store(everythingFails)
	w.refused(illness{name: "full of errors", code: codes.Unavailable})
	node.Terminate(t, w.n.ContainerPid("line $i end", "NAME=ending"))
	w.exitIs(ending, 7)
	w.goesOn(lasting)
	for _, fails := range []int32{everythingFails, contentFails} {
		disk.fails.Store(fails)
		w.workerCannotRecover()
		w.exitIs(ending, 7)
		disk.fails.Store(nothingFails)

		w.n.Eventually("the runtime is ready", func() bool { return !w.runtimeNotReady() })
		w.goesOn(lasting)
		w.goesOn(terminal)
		w.exitIs(ending, 7)
	}
	w.othersAreNotDelayed()
	w.n.Kill()
	w.n.Restart()
	w.exitIs(ending, 7)
	for _, r := range all {
		w.n.RemovePod(r.pod)
	}
	left, err := leftovers.Settle(w.n.Context(), w.n.Scope(), before, leftovers.Patience)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range left {
		t.Errorf("left behind: %s", line)
	}
}

// stateOnFuse puts the state directory's parts on a file system that can be told to fail.
func (w *world) stateOnFuse(t *testing.T) *through {
	t.Helper()
	below, err := os.MkdirTemp("/run", "below")
	if err != nil {
		t.Fatal(err)
	}
	disk := showThrough(t, below)
	for _, part := range stateParts {
		from, to := filepath.Join(disk.Dir, part), filepath.Join(w.n.State, part)
		for _, dir := range []string{from, to} {
			if err := os.Mkdir(dir, 0o711); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(to, unix.MNT_DETACH) })
	}
	return disk
}

// workerCannotRecover kills the keeper's worker and waits until it is known that none comes up.
func (w *world) workerCannotRecover() {
	w.t.Helper()
	_, dead := w.n.Keeper()
	w.n.KillWorker()
	w.n.Eventually("another worker", func() bool { _, now := w.n.Keeper(); return now > 0 && now != dead })
	w.n.Eventually("Status says so", w.runtimeNotReady)
}

// runtimeNotReady says whether the condition RuntimeReady is false because the native engine does not answer.
func (w *world) runtimeNotReady() bool {
	w.t.Helper()
	r, err := w.n.Runtime.Status(w.n.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	i := slices.IndexFunc(r.Status.Conditions, func(c *runtimeapi.RuntimeCondition) bool { return c.Type == "RuntimeReady" })
	c := r.Status.Conditions[i]
	return !c.Status && strings.Contains(c.Message, "engine native")
}

// While the logs cannot be written, containers go on, an exit is known, and a container that would log there is
// refused; no line is lost when the errors end in time.
func TestLogDirectoryWithErrors(t *testing.T) {
	w := &world{n: node.Prepare(t, node.Options{Runtime: "crun"}), t: t}
	disk := showThrough(t, t.TempDir())
	w.n.Logs = disk.Dir
	w.n.Restart()
	w.image = w.n.Pull(node.Busybox(t))
	lasting, ending := w.launch("lasting"), w.launch("ending")

	disk.fails.Store(everythingFails)
	_, err := w.n.Runtime.CreateContainer(w.n.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: lasting.pod, Config: node.Container("other", w.image, "true"), SandboxConfig: lasting.sandbox,
	})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("a container that would log where errors are: %v", err)
	}
	node.Terminate(t, w.n.ContainerPid("line $i end", "NAME=ending"))
	w.exitIs(ending, 7)
	w.n.KillWorker()
	w.exitIs(ending, 7)
	if s := w.n.Container(lasting.container); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %v", s.State)
	}
	disk.fails.Store(nothingFails)

	w.goesOn(lasting)
	w.othersAreNotDelayed()
	for _, r := range []*resident{lasting, ending} {
		w.n.RemovePod(r.pod)
	}
}
