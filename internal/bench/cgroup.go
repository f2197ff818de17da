package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Cgroup is where a runtime and all it starts are accounted for.
type Cgroup struct {
	usage string // file with the CPU time
	v2    bool
	dir   string // of its processes, and those below
}

// OpenCgroup finds a cgroup by its path below the cgroup mount root, on v2, or on v1 in the hierarchy
// that accounts for CPU time. One that is not there is fs.ErrNotExist.
func OpenCgroup(root, path string) (*Cgroup, error) {
	for _, try := range []struct {
		hierarchy, file string
		v2              bool
	}{{"", "cpu.stat", true}, {"cpuacct", "cpuacct.usage", false}, {"cpu,cpuacct", "cpuacct.usage", false}} {
		dir := filepath.Join(root, try.hierarchy, path)
		if _, err := os.Stat(filepath.Join(dir, try.file)); err == nil {
			return &Cgroup{usage: filepath.Join(dir, try.file), v2: try.v2, dir: dir}, nil
		}
	}
	return nil, fmt.Errorf("cgroup %s below %s: %w", path, root, fs.ErrNotExist)
}

// CPU is the time that the processes of the cgroup and of those below it have used, dead ones
// included. Kernel threads are in no cgroup of a runtime.
func (c *Cgroup) CPU() (time.Duration, error) {
	data, err := os.ReadFile(c.usage)
	if err != nil {
		return 0, fmt.Errorf("CPU time: %w", err)
	}
	text, unit := strings.TrimSpace(string(data)), time.Nanosecond
	if c.v2 {
		line, _, _ := strings.Cut(text, "\n")
		text, unit = strings.TrimPrefix(line, "usage_usec "), time.Microsecond
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("CPU time: %w", err)
	}
	return time.Duration(n) * unit, nil
}

// processes returns the pids in the cgroup and those below it.
func (c *Cgroup) processes() ([]int, error) {
	var pids []int
	err := filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, failed error) error {
		if errors.Is(failed, fs.ErrNotExist) {
			return nil // a pod has ended
		}
		if failed != nil || d.Name() != "cgroup.procs" {
			return failed
		}
		data, failed := os.ReadFile(path)
		for field := range strings.FieldsSeq(string(data)) {
			if pid, bad := strconv.Atoi(field); bad == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		if errors.Is(failed, fs.ErrNotExist) || errors.Is(failed, unix.ENODEV) {
			return nil
		}
		return failed
	})
	if err != nil {
		return nil, fmt.Errorf("processes of a cgroup: %w", err)
	}
	return pids, nil
}

// Memory is what a runtime needs, in KiB of proportional set size.
type Memory struct {
	Daemon  int64 // the process that serves the CRI
	Helpers int64 // all others that are not the pods' own
}

// Memory adds up the runtime's processes.
func (t *Target) Memory() (Memory, error) {
	var m Memory
	pids, err := t.own()
	if err != nil {
		return m, err
	}
	for _, pid := range pids {
		kib, err := Proportional(pid)
		if err != nil {
			continue // it has ended
		}
		if pid == t.Daemon {
			m.Daemon += kib
		} else {
			m.Helpers += kib
		}
	}
	return m, nil
}

// own are the runtime's processes. The pods' own are those in PID namespaces that are not the daemon's.
func (t *Target) own() ([]int, error) {
	pids, err := t.Cgroup.processes()
	if err != nil {
		return nil, err
	}
	home, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", t.Daemon))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Name, err)
	}
	return slices.DeleteFunc(pids, func(pid int) bool {
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
		return err != nil || ns != home
	}), nil
}

// Proportional is a process's proportional set size in KiB.
func Proportional(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			return strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
		}
	}
	return 0, fmt.Errorf("process %d: no Pss: %w", pid, fs.ErrNotExist)
}

// listener is the pid of the process that listens on a unix socket.
func listener(ctx context.Context, path string) (pid int, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = conn.Close() }()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("socket %s: %w", path, err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); failed == nil {
			pid = int(cred.Pid)
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return 0, fmt.Errorf("who listens on %s: %w", path, err)
	}
	return pid, nil
}
