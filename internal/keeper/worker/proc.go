package worker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stat is what is used of /proc/<pid>/stat (proc_pid_stat(5)).
type stat struct {
	parent  int
	session int
	began   uint64 // clock ticks after boot
}

func readStat(pid int) (stat, bool) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, false
	}
	// The name, in parentheses, may contain anything.
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(f) < 20 {
		return stat{}, false
	}
	parent, err1 := strconv.Atoi(f[1])
	session, err2 := strconv.Atoi(f[3])
	began, err3 := strconv.ParseUint(f[19], 10, 64)
	return stat{parent, session, began}, errors.Join(err1, err2, err3) == nil
}

// startTime is when a process began, in clock ticks after boot; 0 when there is none.
func startTime(pid int) uint64 {
	s, _ := readStat(pid)
	return s.began
}

// programOf names the file that a process runs; "" when there is none.
func programOf(pid int) string {
	var st unix.Stat_t
	if err := unix.Stat("/proc/"+strconv.Itoa(pid)+"/exe", &st); err != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// orphans are the processes of a dead worker's run of an OCI command: the runtime and what it forked
// and did not execute yet. All the words are among their arguments; one of them is unique.
func orphans(words ...string) []int {
	var found []int
	for _, pid := range processes() {
		line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		if err != nil {
			continue
		}
		args := strings.Split(string(line), "\x00")
		if !slices.ContainsFunc(words, func(w string) bool { return !slices.Contains(args, w) }) {
			found = append(found, pid)
		}
	}
	return found
}

// killOrphans ends them, also those that they fork meanwhile.
func killOrphans(words ...string) {
	for range 100 {
		pids := orphans(words...)
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			endOf(pid, unix.SIGKILL)
		}
	}
}

// awaitOrphans waits for the end of a command that is not to be broken off, for deleteLimit at most.
func awaitOrphans(words ...string) {
	for _, pid := range orphans(words...) {
		for waited := time.Duration(0); waited < deleteLimit && !endOf(pid, 0); waited += endLimit {
		}
	}
}

// endLimit is how long endOf waits.
const endLimit = 2 * time.Second

// endOf signals a process, where sig is not 0, and waits for its end, for endLimit at most. It says whether there is none.
func endOf(pid int, sig syscall.Signal) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return errors.Is(err, unix.ESRCH)
	}
	defer func() { _ = unix.Close(fd) }()
	if sig != 0 {
		_ = unix.PidfdSendSignal(fd, sig, nil, 0)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(endLimit.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}

// beganBefore says whether a process began before t, and so is the one that a file of that time means.
func beganBefore(pid int, t time.Time) bool {
	const ticks = 100 // a second; USER_HZ is the same everywhere
	var up unix.Timespec
	began := startTime(pid)
	if began == 0 || unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return false
	}
	age := time.Duration(up.Nano()) - time.Duration(began)*(time.Second/ticks)
	return time.Now().Add(-age).Before(t.Add(time.Second))
}

func processes() []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer func() { _ = d.Close() }()
	names, _ := d.Readdirnames(-1)
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

const cgroupRoot = "/sys/fs/cgroup"

// cgroupDirs are the directories of a cgroup: one with v2, one a hierarchy with v1.
func cgroupDirs(path string) []string {
	if path == "" || path == "/" {
		return nil
	}
	hierarchies := []string{cgroupRoot}
	if !exists(filepath.Join(cgroupRoot, "cgroup.controllers")) {
		hierarchies, _ = filepath.Glob(filepath.Join(cgroupRoot, "*"))
	}
	var dirs []string
	for _, hierarchy := range hierarchies {
		dir := filepath.Join(hierarchy, path)
		// A directory in which nothing is mounted is no hierarchy, whatever a runtime has put there.
		if exists(dir) && exists(filepath.Join(hierarchy, "cgroup.procs")) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

func exists(path string) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil
}

// cgroupProcesses are the processes of a cgroup and of those below it.
func cgroupProcesses(path string) []int {
	var pids []int
	for _, dir := range cgroupDirs(path) {
		_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil
			}
			data, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
			for line := range strings.Lines(string(data)) {
				if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
					pids = append(pids, pid)
				}
			}
			return nil
		})
		if len(pids) > 0 {
			break // every hierarchy of v1 has the same
		}
	}
	return pids
}

// killCgroup signals every process of a cgroup. SIGKILL is repeated until none is left, because
// they may fork meanwhile.
func killCgroup(path string, sig syscall.Signal) {
	dirs := cgroupDirs(path)
	if len(dirs) == 0 {
		return
	}
	if sig == unix.SIGKILL && os.WriteFile(filepath.Join(dirs[0], "cgroup.kill"), []byte("1"), 0) == nil {
		return
	}
	for range 200 {
		pids := cgroupProcesses(path)
		for _, pid := range pids {
			_ = unix.Kill(pid, sig)
		}
		if len(pids) == 0 || sig != unix.SIGKILL {
			return
		}
		<-time.After(time.Millisecond) // a killed process leaves its cgroup when it is reaped
	}
}

// awaitLimit is how long processes may take to vanish after SIGKILL.
const awaitLimit = 3 * time.Second

// awaitEmpty waits until a killed cgroup has no process, and returns those that are left after awaitLimit. What counts is
// how long it waited for them: a machine that stood still meanwhile has ended nobody.
func awaitEmpty(path string) []int {
	const pause = 10 * time.Millisecond // one that has ended leaves its cgroup when it is reaped
	for waited := time.Duration(0); ; waited += pause {
		left := cgroupProcesses(path)
		if len(left) == 0 || waited >= awaitLimit {
			return left
		}
		if !endOf(left[0], 0) {
			waited += endLimit
		}
		<-time.After(pause)
	}
}

// removeCgroup removes an empty cgroup and the empty ones below it, and returns what is left of it.
func removeCgroup(path string) []string {
	for _, dir := range cgroupDirs(path) {
		if unix.Rmdir(dir) == nil {
			continue
		}
		var all []string
		_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, p)
			}
			return nil
		})
		for _, p := range slices.Backward(all) {
			_ = unix.Rmdir(p)
		}
	}
	return cgroupDirs(path)
}

// readStatus takes the status from what an OCI runtime's state command wrote.
func readStatus(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	var s struct{ Status string }
	_ = json.Unmarshal(data, &s)
	return s.Status
}
