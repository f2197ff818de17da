package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/atomicfile"
	"gantry/internal/crilog"
	"gantry/internal/keeper/wire"
)

// The phases of a container. Starting is a start that may have happened; clients see it as created.
const (
	phaseCreating = "creating"
	phaseCreated  = "created"
	phaseStarting = "starting"
	phaseRunning  = "running"
	phaseExited   = "exited"
)

const recordName = "container.json"

// saved is container.json.
type saved struct {
	wire.Create
	Phase   string `json:"phase"`
	Pid     int    `json:"pid,omitempty"`
	Began   uint64 `json:"began,omitempty"` // the pid's start time in clock ticks, against reuse
	MadeLog bool   `json:"madeLog,omitempty"`
	Program string `json:"program,omitempty"` // what the process is before its start, by which programOf knows it
}

// container is one container in the worker's hands.
type container struct {
	w         *Worker
	dir       string
	recovered bool // made by a worker that died, some command of which may still run

	wanted context.Context // ended, with errRemoved, when the container is to be removed
	unwant context.CancelCauseFunc

	mu     sync.Mutex
	saved             // guarded by mu
	exit   *wire.Exit // guarded by mu; set when the output up to it is in the log
	exited chan struct{}
	ending sync.Once
	runs   atomic.Bool // run was called

	held    map[string]int  // guarded by mu; descriptors, by the name without the key
	taken   map[string]bool // those of held that a stream or the log closes
	streams []*stream
	log     *logFile
	pumps   sync.WaitGroup
}

func (w *Worker) newContainer(s saved) *container {
	wanted, unwant := context.WithCancelCause(context.Background())
	c := &container{
		wanted: wanted, unwant: unwant,
		w: w, dir: w.containerDir(s.Key), saved: s, exited: make(chan struct{}), held: map[string]int{}, taken: map[string]bool{},
		log: &logFile{path: s.LogPath, fd: -1, stop: make(chan struct{}), bounds: bounds{LogBounds: s.Bounds}},
	}
	c.log.bounds.report = func(dropped int64) { w.publish(wire.Event{Key: c.Key, LogDropped: dropped}) }
	return c
}

// half says whether the container's create has not come to its end.
func (c *container) half() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Phase == phaseCreating
}

// save sets phase and puts the container on record. Where the disk has no room for that, it stays in the phase that is
// on record.
func (c *container) save(phase string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.saved
	next.Phase = phase
	data, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("record container: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(c.dir, recordName), data, 0o600); err != nil {
		return fmt.Errorf("record container: %w", err)
	}
	c.Phase = phase
	return nil
}

func (c *container) state() wire.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := wire.State{Key: c.Key, Phase: c.Phase, Pid: c.Pid, Bundle: c.Bundle, CgroupPath: c.CgroupPath, Exit: c.exit,
		LogDropped: c.log.bounds.dropped.Load()}
	if s.Phase == phaseStarting {
		s.Phase = phaseCreated
	}
	if s.Exit != nil {
		s.Phase, s.Pid = phaseExited, 0
	}
	return s
}

// keep gives the holder descriptors of the container, by name.
func (c *container) keep(files map[string]int) error {
	m, fds := wire.Names{}, []int{}
	c.mu.Lock()
	for name, fd := range files {
		m.Names, fds = append(m.Names, c.Key+"/"+name), append(fds, fd)
		c.held[name] = fd
	}
	c.mu.Unlock()
	return c.w.tell(wire.OpHold, m, fds...)
}

// file returns a descriptor of the container by its name.
func (c *container) file(name string) (fd int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fd, ok = c.held[name]
	return fd, ok
}

// Names of a container's descriptors.
const (
	fileLog     = "log"
	fileStdin   = "stdin" // write end
	fileMaster  = "master"
	fileViaRead = "via.read" // the pipe between a terminal and its stage
	fileViaIn   = "via.write"
	filePidfd   = "pidfd"
	stageSuffix = ".stage"
)

// outputs are the streams a container writes.
func (s *saved) outputs() []crilog.Stream {
	if s.TTY {
		return []crilog.Stream{crilog.Stdout}
	}
	return []crilog.Stream{crilog.Stdout, crilog.Stderr}
}

// heldByHolder says to people what only the holder had.
func (s *saved) heldByHolder() string {
	if s.TTY {
		return "its terminal, which hangs up its session"
	}
	return "output on its way to the log, if there was any"
}

// prepare makes what carries the container's streams, as far as it is not there, and has it kept.
// For a container that is recovered, what is not there was lost with a holder.
func (c *container) prepare() error {
	made := map[string]int{}
	add := func(name string, fd int, err error) error {
		if err == nil {
			made[name] = fd
		}
		return err
	}
	missing := func(name string) bool { _, ok := c.file(name); return !ok }
	for _, name := range c.outputs() {
		if !c.TTY && missing(string(name)) {
			fd, err := c.fifo(string(name), unix.O_RDWR|unix.O_NONBLOCK)
			if err = add(string(name), fd, err); err != nil {
				return err
			}
		}
		if stage := string(name) + stageSuffix; missing(stage) {
			fd, err := newStage(stage)
			if err = add(stage, fd, err); err != nil {
				return err
			}
		}
	}
	if c.TTY && missing(fileViaRead) {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			return fmt.Errorf("pipe: %w", err)
		}
		made[fileViaRead], made[fileViaIn] = p[0], p[1]
	}
	if c.Stdin && !c.TTY && missing(fileStdin) && !c.stdinClosed() {
		fd, err := c.fifo("stdin", unix.O_RDWR|unix.O_NONBLOCK)
		if err = add(fileStdin, fd, err); err != nil {
			return err
		}
	}
	if c.LogPath != "" && missing(fileLog) {
		open := openLog
		if c.recovered {
			open = openLost
		}
		fd, fresh, err := open(c.LogPath)
		switch {
		case err == nil:
			made[fileLog] = fd
			c.MadeLog = c.MadeLog || fresh
		case c.recovered: // it runs: its output is dropped until somebody has the log reopened
			log.Printf("recover container %s: %v", c.Key, err)
		default:
			return err
		}
	}
	if len(made) == 0 {
		return nil
	}
	return c.keep(made)
}

// fifo opens one of the container's FIFOs and makes it where it is missing. The directory keeps others
// away; the container itself, whatever user it is on the node, may open its /dev/stdout.
func (c *container) fifo(name string, flags int) (int, error) {
	path := filepath.Join(c.dir, name)
	err := unix.Mkfifo(path, 0o600)
	if err == nil {
		err = unix.Chmod(path, 0o666)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, fmt.Errorf("make fifo %s: %w", path, err)
	}
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open fifo %s: %w", path, err)
	}
	return fd, nil
}

func (c *container) stdinClosed() bool {
	_, err := os.Stat(filepath.Join(c.dir, "stdin.closed"))
	return err == nil
}

// connect makes streams of the container's descriptors and completes what a dead worker began.
func (c *container) connect() error {
	c.log.fd = -1
	if fd, ok := c.file(fileLog); ok {
		c.log.fd, c.taken[fileLog] = fd, true
	}
	for _, name := range c.outputs() {
		s := &stream{name: name, format: plain{name}, log: c.log, via: [2]int{-1, -1}, viewers: map[*viewer]int{}}
		st, err := openStage(c.held[string(name)+stageSuffix])
		if err != nil {
			return err
		}
		if err := c.source(s); err != nil {
			return err
		}
		s.st, s.viewed = st, st.size
		c.mu.Lock()
		c.streams = append(c.streams, s)
		c.mu.Unlock()
		c.log.bounds.dropped.Add(st.droppedBytes())
		c.taken[string(name)+stageSuffix] = true
		c.taken[fileViaRead], c.taken[fileViaIn] = true, true
	}
	for _, s := range c.streams {
		s.recover()
	}
	return nil
}

// source opens what a stream reads.
func (c *container) source(s *stream) error {
	var err error
	if c.TTY {
		var fd int
		master, ok := c.held[fileMaster]
		if !ok { // it went with a holder, and the session with it
			master = -1
		}
		s.via = [2]int{c.held[fileViaRead], c.held[fileViaIn]}
		if fd, err = unix.FcntlInt(uintptr(master), unix.F_DUPFD_CLOEXEC, 0); errors.Is(err, unix.EBADF) {
			fd, err = unix.FcntlInt(uintptr(s.via[0]), unix.F_DUPFD_CLOEXEC, 0)
		}
		if err == nil {
			err = unix.SetNonblock(fd, true)
		}
		s.src = os.NewFile(uintptr(fd), string(s.name))
	} else {
		s.src, s.fifo, err = openFIFO(c.held[string(s.name)], string(s.name))
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", s.name, err)
	}
	s.rc, err = s.src.SyscallConn()
	return err
}

// run begins to move output and to watch for the end. An exit that is on record already is
// announced when run returns.
func (c *container) run() {
	for _, s := range c.streams {
		s.start(&c.pumps)
	}
	c.w.ooms.add(c.Key, c.CgroupPath)
	c.runs.Store(true)
	if e, err := readExit(c.dir); err == nil {
		c.ended(*e)
	}
}

// drainLimit bounds how long an exit waits for its output, where the log's disk is stuck.
const drainLimit = 2 * time.Second

// ended announces an exit once the output up to it is in the log.
func (c *container) ended(e wire.Exit) {
	c.ending.Do(func() {
		c.w.reached(exitHeard)
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			for _, s := range c.streams {
				s.finish()
			}
		}()
		within(drained, drainLimit)
		c.w.reached(exitDrained)
		if n := c.w.ooms.ended(c.Key, e.Code == 128+int32(unix.SIGKILL)); n > 0 && e.Code != 0 && !e.OOMKilled {
			e.OOMKilled = true
			if err := writeExit(c.dir, e); err != nil {
				log.Print(err)
			}
		}
		c.mu.Lock()
		c.exit = &e
		c.mu.Unlock()
		close(c.exited)
		c.w.ooms.remove(c.Key)
		c.w.publish(wire.Event{Key: c.Key, Exit: &e})
		c.w.reached(exitAnnounced)
	})
}

// survived publishes an OOM kill that the container outlived.
func (w *Worker) survived(key string) {
	w.mu.Lock()
	c := w.containers[key]
	w.mu.Unlock()
	if c == nil {
		return
	}
	if c.state().Exit == nil {
		w.publish(wire.Event{Key: key})
	}
}

// release ends the container's streams and gives back its descriptors, here and at the holder.
func (c *container) release() error {
	c.w.ooms.remove(c.Key)
	c.log.giveUp()
	for _, s := range c.streams {
		s.close() // with it the stage and the pipe
	}
	c.pumps.Wait()
	c.log.close()
	c.mu.Lock()
	held := c.held // a client that leaves, or signals, must not find a descriptor that is closed here
	c.held = map[string]int{}
	c.mu.Unlock()
	m := wire.Names{}
	for name, fd := range held {
		m.Names = append(m.Names, c.Key+"/"+name)
		if !c.taken[name] {
			_ = unix.Close(fd)
		}
	}
	return c.w.tell(wire.OpDrop, m)
}

func readExit(dir string) (*wire.Exit, error) {
	data, err := readRecord(filepath.Join(dir, wire.ExitFile))
	if err != nil {
		return nil, err
	}
	e := new(wire.Exit)
	if err := json.Unmarshal(data, e); err != nil {
		return nil, fmt.Errorf("exit record: %w", err)
	}
	return e, nil
}

func writeExit(dir string, e wire.Exit) error {
	data, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("exit record: %w", err)
	}
	return atomicfile.Write(filepath.Join(dir, wire.ExitFile), data, 0o600)
}
