package holder

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

// startWorker starts the worker and gives it everything.
func (h *holder) startWorker() error {
	if _, ok := h.files[wire.SocketName]; !ok { // also after a worker that died while it handed over
		fd, err := wire.Listen(filepath.Join(h.opt.StateDir, wire.SocketName))
		if err != nil {
			return err
		}
		h.files[wire.SocketName] = fd
	}
	ours, theirs, err := wire.Pair()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(theirs) }()
	// The worker gets the lock too: no second keeper begins while a worker still writes.
	pid, err := syscall.ForkExec("/proc/self/exe",
		[]string{"gantry-keeper", "--state", h.opt.StateDir, "--cgroup", h.opt.CgroupPath, "--worker"},
		&syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2, uintptr(theirs), uintptr(h.lock)}})
	if err != nil {
		_ = unix.Close(ours)
		return fmt.Errorf("start worker: %w", err)
	}
	link, err := wire.NewConn(ours)
	if err != nil {
		return err
	}
	h.worker = pid
	h.connect(link)
	h.sendHeld()
	return nil
}

// workerEnded comes after the worker's last message: all its threads are gone, or it gave up its link.
func (h *holder) workerEnded(link *wire.Conn) {
	_ = link.Close()
	if link != h.link {
		return
	}
	h.link = nil
	if h.worker > 0 {
		_ = unix.Kill(h.worker, unix.SIGKILL)
	}
	h.reap()
	if h.upgrading {
		h.upgrading = false
		log.Printf("upgrade: %v", h.reexec())
	}
	if h.crashes > 10 {
		<-time.After(min(time.Duration(h.crashes-10)*10*time.Millisecond, time.Second))
	}
	for {
		err := h.startWorker()
		if err == nil {
			return
		}
		log.Print(err)
		<-time.After(100 * time.Millisecond) // out of processes or memory: it may pass
	}
}

// countCrash slows down the restart of a worker that cannot live: one that ends by itself, soon,
// again and again. One that was killed is restarted at once.
func (h *holder) countCrash(ws unix.WaitStatus) {
	h.worker = 0
	if ws.Signaled() && ws.Signal() == unix.SIGKILL || time.Since(h.born) > 10*time.Second {
		h.crashes = 0
		return
	}
	h.crashes++
	log.Printf("worker ended: exit %d, signal %d", ws.ExitStatus(), ws.Signal())
}

// protect makes the process hard to kill by lack of memory and moves it out of its starter's cgroup.
func protect(cgroup string) {
	// Without CAP_SYS_RESOURCE nobody may go below the value he started with.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0); err != nil && !errors.Is(err, unix.EACCES) {
		log.Printf("oom_score_adj: %v", err)
	}
	if cgroup == "" {
		return
	}
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		if err := enter(root, cgroup); err != nil {
			log.Print(err)
		}
		return
	}
	hierarchies, err := os.ReadDir(root)
	if err != nil {
		log.Print(err)
	}
	for _, d := range hierarchies {
		top := filepath.Join(root, d.Name())
		if _, err := os.Stat(filepath.Join(top, "cgroup.procs")); err != nil || !d.IsDir() {
			continue
		}
		if err := enter(top, cgroup); err != nil {
			log.Print(err)
		}
	}
}

// enter moves the process into top/cgroup. A v1 cpuset takes nobody until it has CPUs and memory.
func enter(top, cgroup string) error {
	dir := top
	for part := range strings.SplitSeq(strings.Trim(cgroup, "/"), "/") {
		parent := dir
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("own cgroup: %w", err)
		}
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			own, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil || strings.TrimSpace(string(own)) != "" || filepath.Base(top) != "cpuset" {
				continue
			}
			value, err := os.ReadFile(filepath.Join(parent, name))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, name), value, 0)
			}
			if err != nil {
				return fmt.Errorf("own cgroup: %w", err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("enter own cgroup: %w", err)
	}
	return nil
}

// resumeEnv holds the number of a descriptor with the state of a holder that re-executed.
const resumeEnv = "GANTRY_KEEPER_RESUME"

// resumed is what survives a re-execution beside the descriptors themselves.
type resumed struct {
	Lock   int
	Files  map[string]int
	Claims []wire.Claim
	Loose  map[int]looseExit
	// Unwritten are exits that no disk has taken; a holder that knows nothing of them leaves it to
	// the kernel's memory.
	Unwritten []unwritten `json:",omitempty"`
}

type looseExit struct {
	Status unix.WaitStatus
	At     time.Time
}

// upgrade ends the worker, so that no message of it is under way, and re-executes after its last.
func (h *holder) upgrade() {
	if h.worker > 0 {
		h.upgrading = true
		_ = unix.Kill(h.worker, unix.SIGKILL)
	}
}

// reexec replaces the program by what is now at its path. Pid, children and descriptors stay; the
// worker is replaced too. It returns only on failure, and then everything goes on as before.
func (h *holder) reexec() error {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	self = strings.TrimSuffix(self, " (deleted)")
	state := resumed{Lock: h.lock, Files: h.files, Loose: map[int]looseExit{}}
	for _, c := range h.claims {
		state.Claims = append(state.Claims, c)
	}
	for pid, d := range h.loose.all() {
		state.Loose[pid] = looseExit{d.status, d.at}
	}
	for _, u := range h.unwritten {
		state.Unwritten = append(state.Unwritten, u)
	}
	data, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	fd, err := unix.MemfdCreate("keeper-resume", 0)
	if err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.Pwrite(fd, data, 0); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	h.inherit(true)
	defer h.inherit(false)
	args := []string{"gantry-keeper", "--state", h.opt.StateDir, "--cgroup", h.opt.CgroupPath, "--resume"}
	return fmt.Errorf("execute %s: %w", self, unix.Exec(self, args, append(os.Environ(), fmt.Sprintf("%s=%d", resumeEnv, fd))))
}

func (h *holder) inherit(on bool) {
	flag := unix.FD_CLOEXEC
	if on {
		flag = 0
	}
	_, _ = unix.FcntlInt(uintptr(h.lock), unix.F_SETFD, flag)
	for _, fd := range h.files {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag)
	}
}

// resume takes over what reexec saved. The worker ended before.
func (h *holder) resume() error {
	var fd int
	if _, err := fmt.Sscan(os.Getenv(resumeEnv), &fd); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	if err := os.Unsetenv(resumeEnv); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	f := os.NewFile(uintptr(fd), "keeper-resume")
	defer func() { _ = f.Close() }()
	if _, err := f.Seek(0, 0); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	var state resumed
	if err := json.NewDecoder(f).Decode(&state); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	h.lock, h.files = state.Lock, state.Files
	h.inherit(false)
	for pid, d := range state.Loose {
		h.loose.add(pid, death{d.Status, d.At})
	}
	for _, u := range state.Unwritten {
		h.unwritten[u.Claim.Key] = u
	}
	for _, c := range state.Claims {
		if child(c.Pid) { // others are claimed again by the worker, with their pidfd
			h.claims[c.Pid] = c
		}
	}
	return nil
}
