package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gantry/internal/bench"
	"gantry/internal/netns"
)

// floors measures alone what a runtime cannot do without.
func floors(ctx context.Context, m *measurement) error {
	o := m.options
	to := m.results.Scope(bench.LimitCase, bench.Limit)
	times := 20
	if !o.quick {
		times = 100
	}
	dir := filepath.Join(o.dir, "floors")
	if err := bundle(ctx, dir); err != nil {
		return err
	}
	unmount, err := readOnlyCrun(dir)
	if err != nil {
		return err
	}
	defer unmount()
	cni, err := newCNI(dir)
	if err != nil {
		m.leftOut("what CNI's plugins take alone", err)
	}
	for i := range times {
		if err = errors.Join(crunFloors(ctx, dir, i, to), kernelFloors(ctx, dir, to)); err != nil {
			return err
		}
		if i < times/4 { // runc and CNI's plugins take their time
			if err = errors.Join(ociProgram{name: "runc", path: "runc"}.floor(ctx, dir, i, to), cni.floor(ctx, to)); err != nil {
				return err
			}
		}
	}
	return errors.Join(callFloors(ctx, dir, times, to), logFloor(dir, o.plan().logBytes, to), pullFloor(ctx, m, dir, to))
}

// limitsAgain measures the limits of a pod's life once more, a few times: between the runtimes' turns, when the
// machine is as they find it.
func limitsAgain(ctx context.Context, m *measurement, round int) error {
	dir, to := filepath.Join(m.options.dir, "floors"), m.results.Scope(bench.LimitCase, bench.Limit)
	unmount, err := readOnlyCrun(dir)
	if err != nil {
		return err
	}
	defer unmount()
	const times = 5
	for i := range times {
		if err = errors.Join(crunFloors(ctx, dir, again+times*round+i, to), kernelFloors(ctx, dir, to)); err != nil {
			return err
		}
	}
	return nil
}

// again is the number of the first container of limits that are measured again.
const again = 1000

// bundle makes an OCI bundle with a shell.
func bundle(ctx context.Context, dir string) error {
	bin := filepath.Join(dir, "rootfs", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	for _, name := range []string{"sh", "true", "sleep"} {
		if err = os.WriteFile(filepath.Join(bin, name), busybox, 0o755); err != nil { //nolint:gosec // a program
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "crun", "spec")
	cmd.Dir = dir
	if out, failed := cmd.CombinedOutput(); failed != nil {
		return fmt.Errorf("crun spec: %w: %s", failed, out)
	}
	config := filepath.Join(dir, "config.json")
	text, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	text, err = edit(text, []string{"sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"})
	if err != nil {
		return err
	}
	return os.WriteFile(config, text, 0o600)
}

const readOnlyDir = "read-only"

// readOnlyCrun puts crun's program on a read-only mount below dir.
func readOnlyCrun(dir string) (unmount func(), err error) {
	program, err := exec.LookPath("crun")
	if err != nil {
		return nil, err
	}
	target := filepath.Join(dir, readOnlyDir, "crun")
	if err = os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return nil, err
	}
	if err = os.WriteFile(target, nil, 0o600); err != nil {
		return nil, err
	}
	unmount = func() { _ = unix.Unmount(target, unix.MNT_DETACH) }
	if err = unix.Mount(program, target, "", unix.MS_BIND, ""); err == nil {
		if err = unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			unmount()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read-only mount of %s: %w", program, err)
	}
	return unmount, nil
}

// crunFloors runs a container by crun as it is, and one by crun on its read-only mount.
func crunFloors(ctx context.Context, dir string, i int, to bench.Scope) error {
	asIs := ociProgram{name: "crun", path: "crun"}
	readOnly := ociProgram{name: "crun", path: filepath.Join(dir, readOnlyDir, "crun"), how: bench.OnReadOnly}
	first, second := asIs, readOnly
	if i%2 == 1 { // who comes at once after another finds the kernel's locks of cgroups as that left them
		first, second = readOnly, asIs
	}
	return errors.Join(first.floor(ctx, dir, i, to), second.floor(ctx, dir, i, to))
}

// ociProgram is an OCI runtime and how it is run, which is added to the names of what it takes.
type ociProgram struct{ name, path, how string }

// floor runs a container by the runtime alone.
func (p ociProgram) floor(ctx context.Context, dir string, i int, to bench.Scope) error {
	id := "bench-floor-" + strconv.Itoa(os.Getpid()) + "-" + strconv.Itoa(i)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	call := func(name string, args ...string) error {
		cmd := exec.CommandContext(ctx, p.path, append([]string{"--root", filepath.Join(dir, p.name)}, args...)...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, os.Stderr // no pipe: the container would hold it
		began := time.Now()
		err := cmd.Run()
		to.Took(p.name+" "+name+p.how, time.Since(began))
		if err != nil {
			return fmt.Errorf("%s %s: %w", p.name, name, err)
		}
		cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		to.Took(p.name+" "+name+p.how+bench.CPUTime, cpu)
		return nil
	}
	return errors.Join(
		call("create", "create", "--bundle", dir, id), call("start", "start", id), call("exec", "exec", id, "true"),
		call("delete --force", "delete", "--force", id))
}

// kernelFloors measures single acts of the kernel.
func kernelFloors(ctx context.Context, dir string, to bench.Scope) error {
	pin := filepath.Join(dir, "netns")
	acts := []struct {
		name string
		do   func() error
	}{
		{"process: fork, execute, wait", func() error { return exec.CommandContext(ctx, "/bin/true").Run() }},
		{bench.LimitNamespace, func() error { return netns.Create(netns.Spec{Net: pin}) }},
		{bench.LimitVeth, func() error { return veth(pin) }},
		{"veth pair: remove", func() error { return removeLink() }},
		{bench.LimitUnpin, func() error { return netns.Unpin(pin) }},
		{bench.LimitOverlay, func() error { return overlay(dir) }},
	}
	for _, a := range acts {
		began := time.Now()
		if err := a.do(); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		to.Took(a.name, time.Since(began))
	}
	return killFloor(to)
}

// killFloor kills the only process of a PID namespace, which is what a container's end comes to.
func killFloor(to bench.Scope) error {
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("process in namespaces: %w", err)
	}
	began := time.Now()
	err := cmd.Process.Kill()
	_ = cmd.Wait() // it was killed, it says
	to.Took(bench.LimitKill, time.Since(began))
	return err
}

const floorLink = "gbench0"

func veth(pin string) error {
	ns, err := os.Open(pin)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = floorLink
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerNamespace = "eth0", netlink.NsFd(int(ns.Fd()))
	if err = netlink.LinkAdd(v); err != nil {
		return err
	}
	return netlink.LinkSetUp(v)
}

func removeLink() error {
	link, err := netlink.LinkByName(floorLink)
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}

func overlay(dir string) error {
	for _, name := range []string{"upper", "work", "merged"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	merged := filepath.Join(dir, "merged")
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", filepath.Join(dir, "rootfs"), filepath.Join(dir, "upper"), filepath.Join(dir, "work"))
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return err
	}
	return unix.Unmount(merged, 0)
}

// logFloor copies what a process writes into a pipe to a file, with no stamp and no look at it.
func logFloor(dir string, size int64, to bench.Scope) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(dir, "copy"))
	if err != nil {
		return err
	}
	began, before := time.Now(), ownCPU()
	written := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // a process of its own would cost more than it shows
		block := make([]byte, 64<<10)
		var failed error
		for left := size; left > 0 && failed == nil; left -= int64(len(block)) {
			_, failed = w.Write(block[:min(left, int64(len(block)))])
		}
		written <- errors.Join(failed, w.Close())
	}()
	_, err = io.Copy(out, r) // splices
	err = errors.Join(err, <-written, r.Close(), out.Close(), os.Remove(out.Name()))
	to.Add(bench.LimitPipe, "s", time.Since(began).Seconds())
	to.Add(bench.LimitPipeCPU, "s", (ownCPU() - before).Seconds())
	return err
}
