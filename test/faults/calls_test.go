package faults_test

import (
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

// lines is what containers run: numbered lines, and an exit code of their own when told to end.
const lines = `trap 'exit 7' TERM
i=0
while :; do
  echo "line $i end"
  i=$((i+1))
  sleep 0.05
done`

// call is one RPC in one situation.
type call struct {
	name    string
	change  func(w *world)       // of the configurations; may be nil
	prepare func(w *world)       // makes what the call needs
	do      func(w *world) error // makes the call, also once more
	right   func(err error) bool // whether an error is the right answer; nil: none is
	done    func(w *world)       // checks that the call did what it is for; may be nil
	usable  bool                 // the pod can be used afterwards

	restores bool // it restores the container
}

func (c *call) adjust(w *world) {
	if c.change != nil {
		c.change(w)
	}
}

// expect checks the answer of a call that nothing interrupted.
func (c *call) expect(w *world, err error) {
	w.t.Helper()
	if c.right == nil && err != nil || c.right != nil && !c.right(err) {
		w.t.Errorf("%s answers %v", c.name, err)
	}
}

// fails says that an answer is the refusal of what cannot be done.
func fails(err error) bool {
	c := status.Code(err)
	return c != codes.OK && c != codes.AlreadyExists && c != codes.DeadlineExceeded && !strings.Contains(status.Convert(err).Message(), "reserved")
}

func nothing(*world) {}

func withPod(w *world) {
	if err := w.runPod(); err != nil {
		w.t.Fatalf("RunPodSandbox: %v", err)
	}
}

func withContainer(w *world) {
	withPod(w)
	w.container = w.n.Create(w.pod, w.config, w.sandbox)
}

func running(w *world) {
	withContainer(w)
	w.n.StartContainer(w.container)
	w.n.Eventually("the container has logged", func() bool { return len(w.logged()) > 0 })
}

func calls() []*call {
	all := slices.Concat(podCalls(), containerCalls(), imageCalls())
	if ociRuntime == "crun" { // whose CRIU can be played
		all = slices.Concat(all, checkpointCalls(), directCalls())
	}
	return all
}

// directCalls are those that need no process of crun where nothing stands before it.
func directCalls() []*call {
	return []*call{
		{name: "StartContainer, crun itself", change: crunItself, prepare: withContainer, do: (*world).start, usable: true},
		{name: "RemoveContainer, crun itself", change: crunItself, prepare: running, do: (*world).remove, done: (*world).containerIsRemoved, usable: true},
		{name: "RemovePodSandbox, crun itself, one PID namespace", change: func(w *world) { crunItself(w); sharePID(w) },
			prepare: running, do: (*world).removePod, done: (*world).isRemoved},
	}
}

func crunItself(w *world) { w.handler = handlerDirect }

func podCalls() []*call {
	return []*call{
		{name: "RunPodSandbox", prepare: nothing, do: (*world).runPod, usable: true},
		{name: "RunPodSandbox, one PID namespace", change: sharePID, prepare: nothing, do: (*world).runPod, usable: true},
		{name: "RunPodSandbox that fails", change: badSysctl, prepare: nothing, do: (*world).runPod, right: fails},
		{name: "StopPodSandbox", prepare: running, do: (*world).stopPod, done: (*world).hasStopped},
		{name: "RemovePodSandbox", prepare: running, do: (*world).removePod, done: (*world).isRemoved},
		{name: "RemovePodSandbox, one PID namespace", change: sharePID, prepare: running, do: (*world).removePod, done: (*world).isRemoved},
	}
}

func sharePID(w *world) {
	w.sandbox.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	w.config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
}

func badSysctl(w *world) { w.sandbox.Linux.Sysctls = map[string]string{"net.no.such": "1"} }

func (w *world) runPod() error {
	r, err := w.n.Runtime.RunPodSandbox(w.n.Context(), &runtimeapi.RunPodSandboxRequest{Config: w.sandbox, RuntimeHandler: w.handler})
	w.pod = r.GetPodSandboxId()
	return err
}

func (w *world) stopPod() error {
	_, err := w.n.Runtime.StopPodSandbox(w.n.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: w.pod})
	return err
}

func (w *world) removePod() error {
	_, err := w.n.Runtime.RemovePodSandbox(w.n.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: w.pod})
	return err
}

func (w *world) hasStopped() {
	w.t.Helper()
	if s := w.n.Pod(w.pod).State; s != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		w.t.Errorf("the pod is %v", s)
	}
	if s := w.n.Container(w.container); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		w.t.Errorf("the container is %v with code %d, want exited with 137", s.State, s.ExitCode)
	}
}

func (w *world) isRemoved() {
	w.t.Helper()
	_, err := w.n.Runtime.PodSandboxStatus(w.n.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: w.pod})
	if status.Code(err) != codes.NotFound {
		w.t.Errorf("status of a removed pod: %v", err)
	}
}

func containerCalls() []*call {
	return []*call{
		{name: "CreateContainer", prepare: withPod, do: (*world).create, usable: true},
		{name: "CreateContainer, terminal", change: terminal, prepare: withPod, do: (*world).create, usable: true},
		{name: "CreateContainer that fails", change: noProgram, prepare: withPod, do: (*world).create, right: fails},
		{name: "StartContainer", prepare: withContainer, do: (*world).start, usable: true},
		{name: "StopContainer", prepare: running, do: (*world).stop, done: (*world).hasExited},
		{name: "StopContainer without grace", prepare: running, do: (*world).killContainer, done: (*world).wasKilled},
		{name: "RemoveContainer", prepare: running, do: (*world).remove, done: (*world).containerIsRemoved, usable: true},
		{name: "UpdateContainerResources", prepare: running, do: (*world).update, done: (*world).isLimited, usable: true},
		{name: "ReopenContainerLog", prepare: rotated, do: (*world).reopen, done: (*world).logsAgain, usable: true},
		{name: "ExecSync", prepare: running, do: (*world).exec, usable: true},
	}
}

func terminal(w *world)  { w.config.Tty = true }
func noProgram(w *world) { w.config.Command = []string{"/no/such/program"} }

func (w *world) create() error {
	r, err := w.n.Runtime.CreateContainer(w.n.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: w.pod, Config: w.config, SandboxConfig: w.sandbox,
	})
	w.container = r.GetContainerId()
	return err
}

// start is answered with an error when the container was started by a call whose answer was lost:
// the state says it then.
func (w *world) start() error {
	_, err := w.n.Runtime.StartContainer(w.n.Context(), &runtimeapi.StartContainerRequest{ContainerId: w.container})
	if status.Code(err) == codes.FailedPrecondition && w.n.Container(w.container).State == runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil
	}
	return err
}

func (w *world) stop() error {
	_, err := w.n.Runtime.StopContainer(w.n.Context(), &runtimeapi.StopContainerRequest{ContainerId: w.container, Timeout: 30})
	return err
}

func (w *world) killContainer() error {
	_, err := w.n.Runtime.StopContainer(w.n.Context(), &runtimeapi.StopContainerRequest{ContainerId: w.container})
	return err
}

func (w *world) remove() error {
	_, err := w.n.Runtime.RemoveContainer(w.n.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: w.container})
	return err
}

func (w *world) hasExited() { w.exitedWith(7) }
func (w *world) wasKilled() { w.exitedWith(137) }

func (w *world) exitedWith(code int32) {
	w.t.Helper()
	if s := w.n.Container(w.container); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != code {
		w.t.Errorf("the container is %v with code %d, want exited with %d", s.State, s.ExitCode, code)
	}
	w.checkLog()
	if log := node.ReadFile(w.t, w.logPath()); !strings.HasSuffix(log, "\n") {
		w.t.Errorf("the last line of the log has no end: %q", log[strings.LastIndexByte(log, '\n')+1:])
	}
}

func (w *world) containerIsRemoved() {
	w.t.Helper()
	_, err := w.n.Runtime.ContainerStatus(w.n.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: w.container})
	if status.Code(err) != codes.NotFound {
		w.t.Errorf("status of a removed container: %v", err)
	}
	w.container = ""
	if err := os.Remove(w.logPath()); err != nil { // the kubelet's to remove
		w.t.Error(err)
	}
}

const limit = 96 << 20

func (w *world) update() error {
	_, err := w.n.Runtime.UpdateContainerResources(w.n.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: w.container, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: limit},
	})
	return err
}

func (w *world) isLimited() {
	w.t.Helper()
	if got := w.n.Container(w.container).GetResources().GetLinux().GetMemoryLimitInBytes(); got != limit {
		w.t.Errorf("the memory limit is %d, want %d", got, limit)
	}
}

// rotated is a running container whose log was renamed away, as the kubelet does.
func rotated(w *world) {
	running(w)
	if err := os.Rename(w.logPath(), w.logPath()+".old"); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) reopen() error {
	_, err := w.n.Runtime.ReopenContainerLog(w.n.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: w.container})
	return err
}

func (w *world) logsAgain() {
	w.t.Helper()
	w.n.Eventually("the new file is written", func() bool {
		info, err := os.Stat(w.logPath())
		return err == nil && info.Size() > 0
	})
}

func (w *world) exec() error {
	_, err := w.n.Runtime.ExecSync(w.n.Context(), &runtimeapi.ExecSyncRequest{
		ContainerId: w.container, Cmd: []string{"sh", "-c", "sleep 0.2; echo done"}, Timeout: int64((30 * time.Second).Seconds()),
	})
	return err
}

func imageCalls() []*call {
	return []*call{
		{name: "PullImage", prepare: nothing, do: (*world).pull, done: func(w *world) { w.isPulled(true) }},
		{name: "RemoveImage", prepare: func(w *world) { w.n.Pull(node.Busybox(w.t)); w.pulled = w.n.Pull(layered(w.t)) },
			do: func(w *world) error { return w.tryRemoveImage(layered(w.t)) }, done: func(w *world) { w.isPulled(false) }},
	}
}

func (w *world) pull() error {
	r, err := w.n.Images.PullImage(w.n.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: layered(w.t)}})
	w.pulled = r.GetImageRef()
	return err
}

func (w *world) isPulled(want bool) {
	w.t.Helper()
	r, err := w.n.Images.ImageStatus(w.n.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: layered(w.t)}})
	if err != nil || (r.Image != nil) != want {
		w.t.Errorf("image is there: %v, %v; want %v", r.GetImage() != nil, err, want)
	}
}

func (w *world) tryRemoveImage(ref string) error {
	_, err := w.n.Images.RemoveImage(w.n.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return err
}

func (w *world) removeImage(ref string) {
	w.t.Helper()
	if err := w.tryRemoveImage(ref); err != nil {
		w.t.Errorf("remove image: %v", err)
	}
}
