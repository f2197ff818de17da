package node

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Process is a line of the process table.
type Process struct {
	Pid     int
	Parent  int
	Command []string
}

// Processes returns the processes of this PID namespace for which keep says yes.
func Processes(keep func(Process) bool) []Process {
	entries, _ := filepath.Glob("/proc/[0-9]*")
	var all []Process
	for _, dir := range entries {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		parent, _ := strconv.Atoi(fields[1])
		p := Process{Pid: pid, Parent: parent, Command: strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")}
		if keep(p) {
			all = append(all, p)
		}
	}
	return all
}

// Keeper returns the pids of the node's keeper: the holder, and its worker or 0 between two workers. A child
// that one of them has just forked still looks like it, and does not count. A worker whose holder is gone has none.
func (n *Node) Keeper() (holder, worker int) {
	keepers := Processes(func(p Process) bool {
		return filepath.Base(p.Command[0]) == "gantry-keeper" && strings.Contains(strings.Join(p.Command, " "), n.State)
	})
	byPid := map[int]Process{}
	for _, p := range keepers {
		byPid[p.Pid] = p
	}
	isWorker := func(p Process) bool { return slices.Contains(p.Command, "--worker") }
	for _, p := range keepers {
		parent, hasParent := byPid[p.Parent]
		_, hasGrandparent := byPid[parent.Parent]
		switch {
		case isWorker(p) && !isWorker(parent) && !hasGrandparent:
			worker = p.Pid
		case !isWorker(p) && !hasParent:
			holder = p.Pid
		}
	}
	return holder, worker
}

// KillWorker sends SIGKILL to the keeper's worker and says whether there was one.
func (n *Node) KillWorker() bool {
	_, worker := n.Keeper()
	return worker > 0 && syscall.Kill(worker, syscall.SIGKILL) == nil
}

// ContainerPid returns the pid of the one process whose command line contains words and whose
// environment contains all of env; a child that it has just forked, which still looks like it, does
// not count.
func (n *Node) ContainerPid(words string, env ...string) int {
	n.t.Helper()
	found := Processes(func(p Process) bool {
		return strings.Contains(strings.Join(p.Command, " "), words) && hasEnvironment(p.Pid, env)
	})
	pids := map[int]bool{}
	for _, p := range found {
		pids[p.Pid] = true
	}
	found = slices.DeleteFunc(found, func(p Process) bool { return pids[p.Parent] })
	if len(found) != 1 {
		n.t.Fatalf("%d processes run %q", len(found), words)
	}
	return found[0].Pid
}

func hasEnvironment(pid int, wanted []string) bool {
	data, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	have := strings.Split(string(data), "\x00")
	return !slices.ContainsFunc(wanted, func(w string) bool { return !slices.Contains(have, w) })
}

// Terminate sends SIGTERM to a process and waits until it is gone.
func Terminate(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatalf("SIGTERM to %d: %v", pid, err)
	}
	WaitGone(pid)
}

// ReadFile returns a file's content.
func ReadFile(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func (n *Node) killKeeper() {
	for range 100 {
		holder, worker := n.Keeper()
		if holder == 0 && worker == 0 {
			return
		}
		for _, pid := range []int{holder, worker} {
			if pid > 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
				WaitGone(pid)
			}
		}
	}
}

// WaitGone waits for the end of a process that is no child of ours, for half a minute at most: the kernel may
// hold one up.
func WaitGone(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	for {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int((30 * time.Second).Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// KillCgroup kills every process in a cgroup and below it, in whichever hierarchy knows it.
func KillCgroup(path string) {
	mounts, _ := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	for _, m := range mounts {
		_ = filepath.WalkDir(filepath.Join(m.Mountpoint, path), func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return nil
			}
			data, _ := os.ReadFile(p)
			for _, field := range strings.Fields(string(data)) {
				if pid, _ := strconv.Atoi(field); pid > 1 {
					_ = syscall.Kill(pid, syscall.SIGKILL)
					WaitGone(pid)
				}
			}
			return nil
		})
	}
}

func unmountBelow(dir string) {
	mounts, _ := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	for _, m := range slices.Backward(mounts) {
		_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
	}
}
