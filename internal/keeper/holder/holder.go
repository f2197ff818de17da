// Package holder is the part of gantry-keeper that must not die: the parent of every container, and
// the owner of the descriptors that output and terminals live by. It does as little as it can: it
// keeps descriptors for the worker, puts exits on record, and restarts the worker.
package holder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

// Options say where the holder works.
type Options struct {
	StateDir   string
	CgroupPath string // own cgroup, below the cgroup mount; "" stays where it is
	Adopt      bool   // started by a worker that lost its holder: descriptors 3 (link) and 4 (lock)
	Resume     bool   // re-executed: the state is in the environment
}

// holder is used by one goroutine, Run's; others speak to it over frames and exits.
type holder struct {
	opt   Options
	lock  int            // keeps a second keeper out; the worker has a copy
	files map[string]int // kept for the worker, by name

	claims    map[int]wire.Claim   // by pid
	loose     deaths               // ended before they were claimed
	unwritten map[string]unwritten // exits that are not on record, by the claim's key

	worker    int        // pid
	link      *wire.Conn // to the worker
	born      time.Time  // of the worker
	upgrading bool       // re-execute when the worker has ended
	leaving   bool       // the machine goes down: end after the last container
	crashes   int        // early deaths of the worker in a row that nobody's SIGKILL explains
	pulse     pulse      // of the worker

	frames chan frame
	exits  chan exit // of claimed processes that are not children
}

// frame is what came from a worker; the last one of a worker has none.
type frame struct {
	link *wire.Conn
	*wire.Frame
	fds []int
}

type exit struct {
	pid  int
	exit wire.Exit
}

// Run is the holder's life. It returns when the state directory cannot be used or another keeper
// has it, and when the machine goes down; ready is told "" or why not, once.
func Run(ctx context.Context, opt Options, ready func(string)) error {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(50)
	h := &holder{
		opt: opt, files: map[string]int{}, claims: map[int]wire.Claim{}, unwritten: map[string]unwritten{},
		frames: make(chan frame), exits: make(chan exit),
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	protect(opt.CgroupPath)
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	upgrade := make(chan os.Signal, 1)
	signal.Notify(upgrade, unix.SIGUSR2)
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, unix.SIGTERM)
	// A terminal's or a service manager's end is not the containers' end.
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGPIPE)

	if err := h.begin(); err != nil {
		ready(err.Error())
		return err
	}
	ready("")
	beat := time.NewTicker(beatTime)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-children:
			h.reap()
		case e := <-h.exits:
			h.record(e.pid, e.exit)
		case f := <-h.frames:
			h.receive(f)
		case <-beat.C:
			h.beat()
			h.writeAgain()
		case <-upgrade:
			h.upgrade()
		case <-terminate:
			h.asked()
		}
		if h.leaving && len(h.claims) == 0 {
			h.end()
			return nil
		}
	}
}

// begin takes the lock and either makes the socket or takes over what another holder left.
func (h *holder) begin() error {
	switch {
	case h.opt.Resume:
		if err := h.resume(); err != nil {
			return err
		}
		h.reap()
		return h.startWorker()
	case h.opt.Adopt:
		h.lock = 4
		unix.CloseOnExec(h.lock)
		link, err := wire.NewConn(3)
		if err != nil {
			return err
		}
		h.connect(link)
		return nil
	}
	if err := h.takeLock(); err != nil {
		return err
	}
	return h.startWorker()
}

// takeLock waits for what is left of a keeper that died: its worker hands over or ends.
func (h *holder) takeLock() error {
	fd, err := unix.Open(filepath.Join(h.opt.StateDir, "keeper.lock"), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("lock state directory: %w", err)
	}
	deadline := time.After(10 * time.Second)
	for {
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			h.lock = fd
			return nil
		}
		if c, dialErr := wire.Dial(filepath.Join(h.opt.StateDir, wire.SocketName)); dialErr == nil {
			_ = c.Close()
			return fmt.Errorf("a keeper already runs on %s", h.opt.StateDir)
		}
		select {
		case <-deadline:
			return fmt.Errorf("lock state directory %s: %w", h.opt.StateDir, err)
		case <-time.After(10 * time.Millisecond): // a lock that is freed tells nobody who may give up
		}
	}
}

// connect begins to listen to a worker.
func (h *holder) connect(link *wire.Conn) {
	h.link, h.born, h.pulse = link, time.Now(), pulse{}
	go func() {
		for {
			f, fds, err := link.Receive()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					log.Printf("worker's link: %v", err)
				}
				h.frames <- frame{link: link}
				return
			}
			h.frames <- frame{link: link, Frame: f, fds: fds}
		}
	}()
}

func (h *holder) receive(f frame) {
	if f.Frame == nil {
		h.workerEnded(f.link)
		return
	}
	var err error
	switch f.Op {
	case wire.OpHold:
		err = h.hold(f)
	case wire.OpDrop:
		err = h.drop(f)
	case wire.OpClaim:
		err = h.claim(f)
	case wire.OpBeat:
		h.pulse = pulse{heard: true}
	default:
		err = fmt.Errorf("unknown message %q", f.Op)
		wire.CloseAll(f.fds)
	}
	if err != nil {
		log.Printf("worker's link: %v", err)
	}
}

func (h *holder) hold(f frame) error {
	var m wire.Names
	if err := f.Into(&m); err != nil || len(m.Names) != len(f.fds) {
		wire.CloseAll(f.fds)
		return errors.Join(fmt.Errorf("hold %d names, %d descriptors", len(m.Names), len(f.fds)), err)
	}
	for i, name := range m.Names {
		if old, ok := h.files[name]; ok {
			_ = unix.Close(old)
		}
		h.files[name] = f.fds[i]
	}
	return nil
}

func (h *holder) drop(f frame) error {
	var m wire.Names
	if err := f.Into(&m); err != nil {
		return err
	}
	for _, name := range m.Names {
		key, _, _ := strings.Cut(name, "/")
		delete(h.unwritten, key) // the container is being removed
		if fd, ok := h.files[name]; ok {
			_ = unix.Close(fd)
			delete(h.files, name)
		}
	}
	return nil
}

// send tells the worker; one that does not read for seconds is replaced.
func (h *holder) send(f *wire.Frame, fds ...int) {
	if h.link == nil {
		return
	}
	_ = h.link.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if err := h.link.Send(f, fds...); err != nil && errors.Is(err, os.ErrDeadlineExceeded) && h.worker > 0 {
		log.Printf("worker %d does not listen: %v", h.worker, err)
		_ = unix.Kill(h.worker, unix.SIGKILL)
	}
}

// sendHeld gives a new worker all descriptors.
func (h *holder) sendHeld() {
	names := make([]string, 0, len(h.files))
	for name := range h.files {
		names = append(names, name)
	}
	for part := range slices.Chunk(names, wire.MaxFiles) {
		fds := make([]int, len(part))
		for i, name := range part {
			fds[i] = h.files[name]
		}
		f := &wire.Frame{Op: wire.OpHeld}
		if err := f.SetBody(wire.Names{Names: part}); err != nil {
			log.Print(err)
			continue
		}
		h.send(f, fds...)
	}
	h.send(&wire.Frame{Op: wire.OpReady})
}
