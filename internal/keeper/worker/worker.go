// Package worker is the part of gantry-keeper that does the work: it runs OCI runtimes, moves output
// into logs, and serves the clients. It may die at any moment. What its successor needs is in the
// state directory, in stages, and in descriptors that the holder keeps.
//
// The state directory:
//
//	keeper.sock, keeper.lock, keeper.log
//	c/<key>/     container.json, exit.json (by the holder), FIFOs stdin, stdout, stderr
//	x/<id>/      exec.json, exit.json (by the holder)
//	l/<key>/     log.json, of a container that dockerd runs
//	plugin       path of the socket at which dockerd finds the log driver
package worker

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
	"gantry/internal/keylock"
)

// Options say where the worker works.
type Options struct {
	StateDir   string
	CgroupPath string // the keeper's own, for a holder that has to be started again
	// Hook, if set, is called at every Point that is reached. One that does not return is a crash there.
	Hook func(Point)
}

// Worker serves one state directory.
//
// Lock order: the key's lock before Worker.mu before container.mu; none is held across an OCI
// runtime but the key's.
type Worker struct {
	opt    Options
	holder atomic.Pointer[wire.Conn]
	keys   keylock.Locks[string]

	mu         sync.Mutex
	containers map[string]*container          // guarded by mu
	execs      map[string]*session            // guarded by mu
	sinks      map[string]*sink               // guarded by mu; logs of containers that are dockerd's
	watchers   map[*wire.Conn]chan wire.Event // guarded by mu
	ooms       *oomWatch

	serving sync.Mutex
	plugin  struct { // guarded by serving
		path string
		file *os.File
	}
}

// Run serves until the holder is gone. The link to the holder is descriptor 3, the state
// directory's lock, held by merely being open, descriptor 4.
func Run(opt Options) error {
	// A terminal's or a service manager's end is not the worker's: the holder would start it again.
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	unprotect()
	unix.CloseOnExec(4)
	// It was executed as /proc/self/exe; people look for it by its name.
	_ = os.WriteFile("/proc/self/comm", []byte("gantry-keeper"), 0)
	link, err := wire.NewConn(3)
	if err != nil {
		return err
	}
	held, err := receiveHeld(link)
	if err != nil {
		return fmt.Errorf("take over descriptors: %w", err)
	}
	listener, ok := held[wire.SocketName]
	if !ok {
		return errors.New("take over descriptors: no socket")
	}
	delete(held, wire.SocketName)
	plugin, served := held[pluginSocket]
	delete(held, pluginSocket)
	w := &Worker{
		opt: opt, containers: map[string]*container{}, execs: map[string]*session{}, sinks: map[string]*sink{},
		watchers: map[*wire.Conn]chan wire.Event{},
	}
	w.holder.Store(link)
	if w.ooms, err = newOOMWatch(cgroupRoot, w.survived); err != nil {
		return err
	}
	if err := w.recover(held); err != nil {
		return err
	}
	if err := w.recoverPlugin(plugin, served); err != nil {
		return err
	}
	socket := os.NewFile(uintptr(listener), wire.SocketName)
	go w.accept(socket)
	if err := w.tell(wire.OpBeat, nil); err != nil { // from now on it answers
		return err
	}
	w.hear(link)
	log.Print("the holder is gone: hand over to a new one")
	return w.handOver(listener)
}

// receiveHeld takes what the holder kept, by name.
func receiveHeld(link *wire.Conn) (map[string]int, error) {
	held := map[string]int{}
	for {
		f, fds, err := link.Receive()
		if err != nil {
			return nil, err
		}
		if f.Op == wire.OpReady {
			return held, nil
		}
		var m wire.Names
		if err := f.Into(&m); err != nil || len(m.Names) != len(fds) {
			return nil, errors.Join(fmt.Errorf("%d names, %d descriptors", len(m.Names), len(fds)), err)
		}
		for i, name := range m.Names {
			held[name] = fds[i]
		}
	}
}

// hear receives the holder's announcements until it is gone.
func (w *Worker) hear(link *wire.Conn) {
	for {
		f, fds, err := link.Receive()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				log.Printf("holder's link: %v", err)
			}
			return
		}
		wire.CloseAll(fds)
		if f.Op == wire.OpBeat {
			if err := w.tell(wire.OpBeat, nil); err != nil {
				log.Printf("holder's link: %v", err)
			}
			continue
		}
		var e wire.Ended
		if err := f.Into(&e); err != nil {
			log.Printf("holder's link: %v", err)
			continue
		}
		go w.ended(e.Key, e.Exit)
	}
}

// execKey marks the holder's claims that are execs.
const execKey = "exec/"

// ended learns of an exit on record. It may come twice, and before the create or the restore that made the process
// has come to its end: then that finds the record, when there are streams to be drained.
func (w *Worker) ended(key string, e wire.Exit) {
	w.mu.Lock()
	c, x := w.containers[key], w.execs[strings.TrimPrefix(key, execKey)]
	w.mu.Unlock()
	if strings.HasPrefix(key, execKey) {
		if x != nil {
			x.end(e)
		}
		return
	}
	if c != nil && c.runs.Load() {
		c.ended(e)
	}
}

// tell sends the holder a message. It outlives this process once it is sent. A holder that is gone
// is no error: its successor is told everything.
func (w *Worker) tell(op string, body any, fds ...int) error {
	f := &wire.Frame{Op: op}
	if err := f.SetBody(body); err != nil {
		return err
	}
	err := w.holder.Load().Send(f, fds...)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

// acceptPause keeps a worker that is out of descriptors or memory from filling its own log.
const acceptPause = 100 * time.Millisecond

// accept serves clients. Their connections end with the worker; they come again.
func (w *Worker) accept(socket *os.File) {
	for {
		conn, err := wire.Accept(socket)
		if err != nil {
			log.Print(err)
			if errors.Is(err, os.ErrClosed) {
				return
			}
			<-time.After(acceptPause)
			continue
		}
		go (&client{w: w, conn: conn}).serve()
	}
}

func (w *Worker) containerDir(key string) string { return filepath.Join(w.opt.StateDir, "c", key) }
func (w *Worker) execDir(id string) string       { return filepath.Join(w.opt.StateDir, "x", id) }

// find returns a container that is whole.
func (w *Worker) find(key string) (*container, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.containers[key]
	if c == nil || c.half() {
		return nil, wire.Errorf(wire.CodeNotFound, "container %s", key)
	}
	return c, nil
}

// publish tells the watchers. One that has not taken the events before is cut off; it lists and
// watches again.
func (w *Worker) publish(e wire.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for conn, events := range w.watchers {
		select {
		case events <- e:
		default:
			delete(w.watchers, conn)
			close(events)
		}
	}
}

// validKey says whether key can be a directory's name and an OCI id.
func validKey(key string) bool {
	if key == "" || len(key) > 200 || key[0] == '.' || key[0] == '-' {
		return false
	}
	return strings.IndexFunc(key, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-+", r)
	}) < 0
}

// unprotect gives up the holder's protection from the lack of memory. OCI runtimes inherit it, and crun
// up to 1.8 hands it on: to containers that ask for 0, and to all execs.
func unprotect() {
	const name = "/proc/self/oom_score_adj"
	score, err := os.ReadFile(name)
	if err == nil && strings.HasPrefix(string(score), "-") {
		err = os.WriteFile(name, []byte("0"), 0)
	}
	if err != nil {
		log.Printf("oom_score_adj: %v", err)
	}
}
