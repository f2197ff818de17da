package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/atomicfile"
	"gantry/internal/keeper/wire"
)

const execFile = "exec.json"

// session is a process that was run in a container besides its main one.
type session struct {
	execSaved
	w      *Worker
	dir    string
	cgroup string
	// recovered says that it was begun through a worker that died: its client may come back or not.
	recovered bool

	once  sync.Once
	exit  wire.Exit     // set before ended is closed
	ended chan struct{} // closed when the process has ended
	asked chan struct{} // closed when a client has asked for a session that was recovered
	ask   sync.Once
}

// execSaved is exec.json.
type execSaved struct {
	ID    string `json:"id"`
	Key   string `json:"key"`
	Pid   int    `json:"pid"`
	Began uint64 `json:"began"`
	// Session is the process's where it is the exec's alone: with crun that of another process, which has ended.
	Session int `json:"session,omitempty"`
}

func (w *Worker) newSession(s execSaved) *session {
	return &session{execSaved: s, w: w, dir: w.execDir(s.ID), ended: make(chan struct{}), asked: make(chan struct{})}
}

func (w *Worker) session(id string) *session {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.execs[id]
}

// exec runs a process on the files of the request, or on a terminal whose master it returns.
func (w *Worker) exec(req wire.ExecRequest, files []*os.File) (x *session, master int, err error) {
	c, err := w.find(req.Key)
	if err != nil {
		return nil, -1, err
	}
	if !validKey(req.ID) {
		return nil, -1, wire.Errorf(wire.CodeInvalid, "exec id %q", req.ID)
	}
	if s := c.state(); s.Exit != nil || s.Phase != phaseRunning {
		return nil, -1, wire.Errorf(wire.CodePrecondition, "exec in container %s: it is %s", req.Key, s.Phase)
	}
	x = w.newSession(execSaved{ID: req.ID, Key: req.Key})
	x.cgroup = c.CgroupPath
	if err = os.MkdirAll(x.dir, 0o700); err != nil {
		return nil, -1, fmt.Errorf("exec directory: %w", err)
	}
	w.reached(execDirectory)
	w.mu.Lock()
	w.execs[x.ID] = x
	w.mu.Unlock()
	if master, err = x.run(c, req, files); err != nil {
		x.undo()
		x.forget()
		return nil, -1, fmt.Errorf("exec in container %s: %w", req.Key, runtimeGone(err))
	}
	return x, master, nil
}

func (x *session) run(c *container, req wire.ExecRequest, files []*os.File) (master int, err error) {
	process := filepath.Join(x.dir, "process.json")
	if err = os.WriteFile(process, req.Process, 0o600); err != nil {
		return -1, fmt.Errorf("exec process: %w", err)
	}
	x.w.reached(execProcess)
	pidFile := filepath.Join(x.dir, "pid")
	args := []string{"exec", "--process", process, "--pid-file", pidFile, "--detach"}
	master = -1
	if req.TTY {
		err = withConsole(x.dir, func(socket string) error {
			return invoke(c.wanted, c.Runtime, x.dir, [3]*os.File{}, append(args, "--console-socket", socket, c.Key)...)
		}, func(fd int) error {
			master = fd
			return nil
		})
	} else {
		var stdio [3]*os.File
		for i, n := range req.Stdio {
			if n < 0 || n > 2 || i >= len(files) {
				return -1, wire.Errorf(wire.CodeInvalid, "exec: stream %d", n)
			}
			stdio[n] = files[i]
			// Not every program can do with a descriptor that does not block.
			if err = unix.SetNonblock(int(fdOf(files[i])), false); err != nil {
				return -1, fmt.Errorf("exec: stream %d: %w", n, err)
			}
		}
		err = invoke(c.wanted, c.Runtime, x.dir, stdio, append(args, c.Key)...)
	}
	if err == nil {
		x.w.reached(execRuntime)
		x.Pid, err = readPid(pidFile)
	}
	if err == nil {
		s, _ := readStat(x.Pid)
		x.Began = s.began
		if main, ok := readStat(c.state().Pid); ok && s.session != main.session {
			x.Session = s.session
		}
		err = x.claim()
	}
	if err == nil {
		x.w.reached(execRecord)
	}
	if err != nil && master >= 0 {
		_ = unix.Close(master)
	}
	return master, err
}

// undo ends the process of an exec that failed when it ran already: one that there is no room to put on record.
func (x *session) undo() {
	if pid, ok := begun(x.dir); ok && x.Pid == 0 {
		x.Pid, x.Began = pid, startTime(pid)
	}
	if err := x.kill(); err != nil {
		log.Print(err)
	}
}

// begun is the process that an OCI runtime has begun for the exec in dir, as far as it has come to note it.
func begun(dir string) (pid int, ok bool) {
	path := filepath.Join(dir, "pid")
	info, err := os.Stat(path)
	if err != nil {
		return 0, false
	}
	pid, err = readPid(path)
	return pid, err == nil && beganBefore(pid, info.ModTime())
}

// claim puts the exec on record and has the holder tell how it ends.
func (x *session) claim() error {
	data, err := json.Marshal(x.execSaved)
	if err != nil {
		return fmt.Errorf("record exec: %w", err)
	}
	if err = atomicfile.Write(filepath.Join(x.dir, execFile), data, 0o600); err != nil {
		return fmt.Errorf("record exec: %w", err)
	}
	m := wire.Claim{Key: execKey + x.ID, Pid: x.Pid, Dir: x.dir}
	fd, err := openPidfd(x.Pid, x.Began)
	if err != nil {
		return x.w.tell(wire.OpClaim, m)
	}
	defer func() { _ = unix.Close(fd) }()
	return x.w.tell(wire.OpClaim, m, fd)
}

func (x *session) end(e wire.Exit) {
	x.once.Do(func() {
		x.exit = e
		close(x.ended)
		x.w.reached(execEnded)
	})
}

// kill ends the process, its descendants, and what else is in its session: those that left it by
// two forks and a new session cannot be told from the container's own.
func (x *session) kill() error {
	select {
	case <-x.ended:
		return nil
	default:
	}
	if x.Pid == 0 || startTime(x.Pid) != x.Began {
		return nil
	}
	// Those that fork are stopped first, lest a child lose the parent by which it is known and have a session of its own.
	for _, pid := range x.family() {
		_ = unix.Kill(pid, unix.SIGSTOP)
	}
	// A fork under way comes to its end also where its process was told to stop, but not behind that process's end.
	killed, stuck := map[int]bool{}, false
	for {
		var left []int
		for _, pid := range x.family() {
			if !killed[pid] {
				left = append(left, pid)
			}
		}
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			killed[pid] = true
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill exec %s: %w", x.ID, err)
			}
		}
		for _, pid := range left {
			stuck = stuck || !endOf(pid, 0) // one that is in the middle of I/O is waited for once
		}
	}
}

func (x *session) family() []int {
	stats := map[int]stat{}
	candidates := cgroupProcesses(x.cgroup)
	if len(candidates) == 0 {
		candidates = processes()
	}
	for _, pid := range candidates {
		if s, ok := readStat(pid); ok {
			stats[pid] = s
		}
	}
	family := []int{x.Pid}
	in := map[int]bool{x.Pid: true}
	for grown := true; grown; {
		grown = false
		for pid, s := range stats {
			if !in[pid] && (in[s.parent] || s.session == x.Pid || x.Session != 0 && s.session == x.Session) {
				in[pid], grown = true, true
				family = append(family, pid)
			}
		}
	}
	return family
}

// forget removes the exec's record.
func (x *session) forget() {
	x.w.mu.Lock()
	delete(x.w.execs, x.ID)
	x.w.mu.Unlock()
	if err := removeDir(x.dir); err != nil {
		log.Printf("remove exec: %v", err)
	}
}

// forgetExecs forgets the execs of a container that is gone, and their processes with it, for whose
// clients nobody waits any more.
func (w *Worker) forgetExecs(key string) {
	w.mu.Lock()
	var gone []*session
	for _, x := range w.execs {
		if x.Key == key && x.recovered {
			gone = append(gone, x)
		}
	}
	w.mu.Unlock()
	for _, x := range gone {
		x.ask.Do(func() {
			close(x.asked)
			x.forget()
		})
	}
}

// orphanLimit is how long an exec whose worker died waits for its client to come back.
const orphanLimit = time.Minute

// orphan kills a recovered exec that nobody asks for.
func (x *session) orphan() {
	select {
	case <-x.asked:
		return
	case <-time.After(orphanLimit):
	}
	if err := x.kill(); err != nil {
		log.Print(err)
	}
	<-x.ended
	x.forget()
}
