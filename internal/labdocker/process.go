package labdocker

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// process is a daemon that was started.
type process struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{} // closed when it was waited for
}

func (d *Daemon) start(log, program string, args ...string) *process {
	d.t.Helper()
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	// Helpers of the same version stand beside the program.
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(program)+":/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a ^C is for the test
	if err := cmd.Start(); err != nil {
		d.t.Fatalf("start %s: %v", program, err)
	}
	p := &process{cmd: cmd, log: log, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.ended)
	}()
	return p
}

func (p *process) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("%v to %s: %v", sig, p.cmd.Path, err)
	}
}

func (p *process) end(t testing.TB, sig syscall.Signal) {
	t.Helper()
	p.signal(t, sig)
	select {
	case <-p.ended:
	case <-time.After(startTime):
		t.Fatalf("%s outlived %v\n%s", p.cmd.Path, sig, tail(p.log))
	}
}

// containerdConfig names no plugin that needs what a test machine lacks.
const containerdConfig = `version = 2
root = %q
state = %q
oom_score = 0
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = %q
[ttrpc]
address = %q
`

// ContainerdConfig is the configuration of the containerd behind a dockerd, with its files in root and
// state and its socket.
func ContainerdConfig(root, state, socket string) string {
	return fmt.Sprintf(containerdConfig, root, state, socket, socket+".ttrpc")
}

func (d *Daemon) startContainerd() {
	d.t.Helper()
	config := filepath.Join(d.Root, "containerd.toml")
	text := ContainerdConfig(filepath.Join(d.Root, "containerd"), filepath.Join(d.Run, "containerd"), d.containerdSocket())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	d.containerd = d.start(filepath.Join(d.Root, "containerd.log"), d.program("containerd"), "--config", config)
	deadline := time.After(startTime)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(d.containerdSocket()); err == nil {
			return // dockerd waits for an answer itself
		}
		select {
		case <-tick.C:
		case <-d.containerd.ended:
			d.t.Fatalf("containerd ended: %v\n%s", d.containerd.cmd.ProcessState, tail(d.containerd.log))
		case <-deadline:
			d.t.Fatalf("containerd has no socket\n%s", tail(d.containerd.log))
		}
	}
}

// tearDown ends everything and removes it. Containers are killed through their cgroup and shims: a
// daemon that hangs is not asked.
func (d *Daemon) tearDown() {
	for _, p := range []*process{d.dockerd, d.containerd} {
		if p != nil {
			p.end(d.t, syscall.SIGKILL)
		}
	}
	d.killLeft()
	d.killCgroup()
	for _, dir := range []string{d.Run, d.Root} {
		d.unmount(dir)
		if err := os.RemoveAll(dir); err != nil {
			d.t.Errorf("remove %s: %v", dir, err)
		}
	}
}

// killLeft kills what is left until nothing is: a shim may have just started a runtime, which writes on.
func (d *Daemon) killLeft() {
	deadline := time.Now().Add(startTime)
	for pids := d.left(); len(pids) > 0; pids = d.left() {
		if time.Now().After(deadline) {
			d.t.Errorf("processes of %s outlive SIGKILL: %v", d.Root, pids)
			return
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// left are the processes that name one of the daemon's directories: shims, proxies.
func (d *Daemon) left() []int {
	var pids []int
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		line, err := os.ReadFile(f)
		pid, bad := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err == nil && bad == nil && pid != os.Getpid() &&
			(bytes.Contains(line, []byte(d.Run+"/")) || bytes.Contains(line, []byte(d.Root+"/lib/"))) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killCgroup kills what is in the containers' cgroups until nothing is left there.
func (d *Daemon) killCgroup() {
	deadline := time.Now().Add(startTime)
	for time.Now().Before(deadline) {
		files, _ := filepath.Glob("/sys/fs/cgroup/pids" + d.Cgroup + "/*/cgroup.procs")
		if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
			files, _ = filepath.Glob("/sys/fs/cgroup" + d.Cgroup + "/*/cgroup.procs")
		}
		pids := 0
		for _, f := range files {
			data, _ := os.ReadFile(f)
			for _, field := range strings.Fields(string(data)) {
				if pid, err := strconv.Atoi(field); err == nil {
					_ = unix.Kill(pid, unix.SIGKILL)
					pids++
				}
			}
		}
		if pids == 0 {
			return
		}
		<-time.After(10 * time.Millisecond) // a killed process leaves its cgroup when it is reaped
	}
	d.t.Errorf("processes in %s outlive SIGKILL", d.Cgroup)
}

// unmount detaches what is mounted below dir, the latest first.
func (d *Daemon) unmount(dir string) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		d.t.Error(err)
		return
	}
	for _, line := range slices.Backward(strings.Split(string(data), "\n")) {
		// proc_pid_mountinfo(5): the mount point is the fifth field.
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
				d.t.Errorf("unmount %s: %v", f[4], err)
			}
		}
	}
}
