package faults_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

const (
	patience = 3 * time.Second  // of the client of what hangs
	delayed  = 20 * time.Second // what another pod's whole life takes at most, on a machine under load
)

// hang is a call of one pod in which something never answers.
type hang struct {
	name    string
	program string                      // that hangs, with its command; or
	arrange func(w *world) (end func()) // makes something else hang
	prepare func(w *world)              // makes what the call needs
	do      func(context.Context, *world) error
	step    string // that Status names; "" for what is no step
	ended   bool   // the pod's containers have ended although it hangs
}

func hangs() []hang {
	return []hang{
		{name: "CNI ADD", program: "stage-bridge ADD", prepare: nothing, do: runPodWith, step: "network attach"},
		{name: "CNI DEL", program: "stage-bridge DEL", prepare: running, do: stopPodWith, step: "network attach", ended: true},
		{name: "OCI create", program: ociRuntime + " create", prepare: withPod, do: createWith, step: "container create"},
		{name: "OCI start", program: ociRuntime + " start", prepare: withContainer, do: startWith, step: "container start"},
		{name: "OCI exec", program: ociRuntime + " exec", prepare: running, do: execWith},
		{name: "OCI delete", program: ociRuntime + " delete", prepare: running, do: removeWith, step: "container create"},
		{name: "mount source", arrange: deadMount, prepare: withPod, do: createWith, step: "container create"},
	}
}

func runPodWith(ctx context.Context, w *world) error {
	_, err := w.n.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: w.sandbox})
	return err
}

func stopPodWith(ctx context.Context, w *world) error {
	_, err := w.n.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: w.pod})
	return err
}

func createWith(ctx context.Context, w *world) error {
	_, err := w.n.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: w.pod, Config: w.config, SandboxConfig: w.sandbox})
	return err
}

func startWith(ctx context.Context, w *world) error {
	_, err := w.n.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: w.container})
	return err
}

func execWith(ctx context.Context, w *world) error {
	_, err := w.n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: w.container, Cmd: []string{"true"}})
	return err
}

func removeWith(ctx context.Context, w *world) error {
	_, err := w.n.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: w.container})
	return err
}

// What hangs in one pod delays no other; Status names it; and the pod can be stopped and removed
// although it hangs, or at the latest when it has been ended.
func TestHangs(t *testing.T) {
	w := newWorld(t, "cni")
	for _, h := range hangs() {
		t.Run(h.name, func(t *testing.T) { w.tryHang(t, h) })
	}
}

func (w *world) tryHang(t *testing.T, h hang) {
	w.reset(t)
	defer w.recover(t)
	end := func() {}
	if h.arrange != nil {
		end = h.arrange(w)
	}
	h.prepare(w)
	if h.program != "" {
		line := h.program + " hang\n"
		if err := os.WriteFile(filepath.Join(w.dir, programFile), []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		end = endSleepers
	}
	defer end()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	began := time.Now()
	if err := h.do(ctx, w); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the call that hangs answers %v", err)
	}
	if took := time.Since(began); took > 2*patience {
		t.Errorf("the client waited %v, it wanted to wait %v", took, patience)
	}
	w.othersAreNotDelayed()
	w.statusSays(h.step)
	if h.ended {
		if s := w.n.Container(w.container); s.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("the container is %v", s.State)
		}
	} else if w.pod != "" {
		w.removedByForce()
	}
	end()
	w.n.Eventually("nothing hangs any more", func() bool { return len(w.said()) == 0 })
	w.removeAll()
	w.nothingIsLeft()
}

// othersAreNotDelayed runs another pod's whole life.
func (w *world) othersAreNotDelayed() {
	w.t.Helper()
	began := time.Now()
	sandbox := w.n.Sandbox("other")
	pod, container := w.n.Launch(sandbox, node.Container("main", w.image, "sleep", "1000"))
	w.n.Exec(container, "true")
	w.n.RemovePod(pod)
	if took := time.Since(began); took > delayed {
		w.t.Errorf("another pod's life took %v", took)
	}
}

// said is what Status says of pods and containers.
func (w *world) said() []string {
	w.t.Helper()
	r, err := w.n.Runtime.Status(w.n.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		w.t.Fatal(err)
	}
	var said []string
	for key, text := range r.Info {
		if strings.HasPrefix(key, "pod.") || strings.HasPrefix(key, "container.") {
			said = append(said, strings.ReplaceAll(text, `\"`, `"`)) // the CRI's values are JSON
		}
	}
	return said
}

func (w *world) statusSays(step string) {
	w.t.Helper()
	if step == "" {
		return
	}
	said := w.said()
	for _, text := range said {
		if strings.Contains(text, fmt.Sprintf("%q for ", step)) {
			return
		}
	}
	w.t.Errorf("Status says %q, want the step %q and how long", said, step)
}

// removedByForce stops and removes the pod while something in it hangs.
func (w *world) removedByForce() {
	w.t.Helper()
	began := time.Now()
	w.n.RemovePod(w.pod)
	if took := time.Since(began); took > delayed {
		w.t.Errorf("the pod was stopped and removed in %v", took)
	}
}

// endSleepers ends the programs that hang.
func endSleepers() {
	for _, p := range node.Processes(func(p node.Process) bool { return strings.Join(p.Command, " ") == hungCommand }) {
		_ = syscall.Kill(p.Pid, syscall.SIGKILL)
	}
}

// deadMount gives the container a bind mount of a FUSE file system whose server reads no request.
func deadMount(w *world) (end func()) {
	w.t.Helper()
	fuse, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	dir := w.t.TempDir()
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fuse.Fd())
	if err = unix.Mount("dead", dir, "fuse.dead", 0, opts); err != nil {
		w.t.Fatal(err)
	}
	w.config.Mounts = []*runtimeapi.Mount{{HostPath: filepath.Join(dir, "volume"), ContainerPath: "/volume"}}
	ended := false
	return func() {
		if ended {
			return
		}
		ended = true
		_ = fuse.Close() // aborts what waits for an answer
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			w.t.Error(err)
		}
	}
}
