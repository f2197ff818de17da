package faults_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/leftovers"
	"gantry/test/node"
)

// disk is one of the server's directories on a file system of its own.
type disk struct {
	name string
	dir  func(*node.Node) string
}

func disks() []disk {
	return []disk{
		{"state directory", func(n *node.Node) string { return n.State }},
		{"root directory", func(n *node.Node) string { return n.Lib }},
	}
}

// illness is what ails a disk. Break returns what mends it.
type illness struct {
	name   string
	breaks func(t *testing.T, dir string) (mend func())
	code   codes.Code // of what cannot be done
}

func illnesses() []illness {
	return []illness{
		{"full", fill, codes.ResourceExhausted},
		{"read-only", makeReadOnly, codes.Unavailable},
	}
}

// A disk that is full, or lets nobody write, ends no container and loses no exit; what cannot be done is
// refused with the reason; stopping goes on; and when it is well again everything goes on without a restart.
func TestSickDisks(t *testing.T) {
	for _, d := range disks() {
		for _, ill := range illnesses() {
			t.Run(d.name+" "+ill.name, func(t *testing.T) { tryDisk(t, d, ill) })
		}
	}
}

func tryDisk(t *testing.T, d disk, ill illness) {
	w := &world{n: node.Prepare(t, node.Options{Runtime: "crun"}), t: t, dir: t.TempDir()}
	dir := d.dir(w.n)
	mountSmall(t, dir)
	w.n.Restart()
	w.image = w.n.Pull(node.Busybox(t))
	w.warmUpQuietly()
	before, err := leftovers.Take(t.Context(), w.n.Scope())
	if err != nil {
		t.Fatal(err)
	}
	lasting := w.launch("lasting")
	ending := w.launch("ending")

	mend := ill.breaks(t, dir)
	w.refused(ill)
	node.Terminate(t, w.n.ContainerPid("line $i end", "NAME=ending"))
	w.exitIs(ending, 7)
	w.n.KillWorker() // and what it knew is not lost with it
	w.exitIs(ending, 7)
	w.goesOn(lasting)
	mend()

	w.goesOn(lasting)
	w.exitIs(ending, 7)
	w.n.KillWorker()
	w.exitIs(ending, 7)
	w.othersAreNotDelayed()
	w.n.Kill()
	w.n.Restart()
	w.exitIs(ending, 7)
	for _, p := range []*resident{lasting, ending} {
		w.n.RemovePod(p.pod)
	}
	left, err := leftovers.Settle(w.n.Context(), w.n.Scope(), before, leftovers.Patience)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range left {
		t.Errorf("left behind: %s", line)
	}
}

// resident is a pod that a sick disk finds.
type resident struct {
	name, pod, container, log string
	sandbox                   *runtimeapi.PodSandboxConfig
}

func (w *world) launch(name string) *resident {
	w.t.Helper()
	return w.launchWith(name, node.Container("main", w.image, "sh", "-c", lines))
}

func (w *world) launchTerminal(name string) *resident {
	w.t.Helper()
	config := node.Container("main", w.image, "sh", "-c", lines)
	config.Tty = true
	return w.launchWith(name, config)
}

func (w *world) launchWith(name string, config *runtimeapi.ContainerConfig) *resident {
	w.t.Helper()
	sandbox := w.n.Sandbox(name)
	config.Envs = []*runtimeapi.KeyValue{{Key: "NAME", Value: []byte(name)}}
	r := &resident{name: name, sandbox: sandbox}
	r.pod, r.container = w.n.Launch(sandbox, config)
	r.log = filepath.Join(sandbox.LogDirectory, config.LogPath)
	w.n.Eventually("the container has logged", func() bool { return r.lines() > 0 })
	return r
}

func (r *resident) lines() int {
	data, err := os.ReadFile(r.log)
	if err != nil {
		return 0
	}
	return strings.Count(string(data), " end\n") + strings.Count(string(data), " end\r\n")
}

// warmUpQuietly runs a pod, so that what the first makes for all is there.
func (w *world) warmUpQuietly() {
	w.t.Helper()
	w.n.RemovePod(w.launch("warm").pod)
}

func (w *world) goesOn(r *resident) {
	w.t.Helper()
	if s := w.n.Container(r.container); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		w.t.Errorf("%s is %v", r.name, s.State)
	}
	had := r.lines()
	w.n.Eventually("its output goes on", func() bool { return r.lines() > had+2 })
	for i, line := range strings.Split(strings.TrimSpace(node.ReadFile(w.t, r.log)), "\n") {
		if !strings.HasSuffix(strings.TrimSuffix(line, "\r"), fmt.Sprintf(" line %d end", i)) {
			w.t.Errorf("line %d of %s is %q", i, r.name, line)
			return
		}
	}
}

func (w *world) exitIs(r *resident, code int32) {
	w.t.Helper()
	if s := w.n.Ended(r.container); s.ExitCode != code {
		w.t.Errorf("%s ended with code %d, reason %s; want %d", r.name, s.ExitCode, s.Reason, code)
	}
}

// refused wants a pod, or a container in it, to be refused with the reason and the code.
func (w *world) refused(ill illness) {
	w.t.Helper()
	sandbox := w.n.Sandbox("refused")
	r, err := w.n.Runtime.RunPodSandbox(w.n.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandbox})
	if err == nil {
		_, err = w.n.Runtime.CreateContainer(w.n.Context(), &runtimeapi.CreateContainerRequest{
			PodSandboxId: r.PodSandboxId, Config: node.Container("main", w.image, "true"), SandboxConfig: sandbox,
		})
	}
	if status.Code(err) != ill.code {
		w.t.Errorf("a pod on a disk that is %s: %v, want %v", ill.name, err, ill.code)
	}
}

// mountSmall makes dir a file system with room for a few pods.
func mountSmall(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=32m,mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

func fill(t *testing.T, dir string) (mend func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// makeReadOnly lets nobody begin to write; what is open for writing is, as after the kernel's own
// remounting, not touched.
func makeReadOnly(t *testing.T, dir string) (mend func()) {
	t.Helper()
	if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
}

// A disk whose every transfer fails ends no container; what has to reach it is refused with the reason,
// and works again when the disk does.
func TestDiskWithErrors(t *testing.T) {
	w := &world{n: node.Prepare(t, node.Options{Runtime: "crun"}), t: t}
	f := newFuse(t)
	mountLoop(t, filepath.Join(f.Dir, "disk"), w.n.Lib)
	w.n.Restart()
	w.image = w.n.Pull(node.Busybox(t))
	resident := w.launch("lasting")
	pull := func() error {
		_, err := w.n.Images.PullImage(w.n.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: layered(t)}})
		return err
	}
	f.Fails.Store(true)
	if err := pull(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "input/output error") {
		t.Errorf("a pull onto a disk with errors: %v", err)
	}
	w.goesOn(resident)
	f.Fails.Store(false)
	w.n.Eventually("a pull works again", func() bool { return pull() == nil })
	w.othersAreNotDelayed()
	w.n.RemovePod(resident.pod)
}

// mountLoop makes dir a file system without a journal, which would stay broken, in the file.
func mountLoop(t *testing.T, file, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(output(t, "losetup", "--show", "--find", file))
	t.Cleanup(func() { output(t, "losetup", "--detach", device) })
	output(t, "mkfs.ext2", "-q", "-F", device)
	if err := unix.Mount(device, dir, "ext2", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

func output(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}
