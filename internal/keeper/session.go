package keeper

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

// Session is an exec or an attach under way. It has a connection of its own, and ends with it: the
// process of an exec whose client dies is killed.
type Session struct {
	Pid     int      // exec: of the process
	Console *os.File // exec with a terminal: its master, the caller's to close
	Stdin   *os.File // attach: the container's input, where it has one, the caller's to close

	client *Client
	again  func(ctx context.Context) (*wire.Conn, error) // after the worker was replaced
	left   func(ctx context.Context)                     // attach with input: tells the worker of its end
	execID string

	mu     sync.Mutex
	conn   *wire.Conn // guarded by mu
	killed bool       // guarded by mu

	done chan struct{}
	exit Exit  // valid when done is closed
	err  error // valid when done is closed
}

// Exec starts a process in a running container.
func (c *Client) Exec(ctx context.Context, req *Exec) (*Session, error) {
	id := rand.Text()
	body := wire.ExecRequest{Exec: *req, ID: id}
	files := given(&body.Stdio, map[int]*os.File{0: req.Stdin, 1: req.Stdout, 2: req.Stderr})
	s := &Session{client: c, execID: id, done: make(chan struct{})}
	f, fds, err := s.open(ctx, wire.OpExec, body, files)
	if errors.Is(err, errBroken) {
		f, fds, err = s.reopen(ctx, wire.OpExecWait, wire.Target{Key: id}, nil)
	}
	if err != nil {
		return nil, err // the keeper's error says that it is the exec, and where
	}
	var reply wire.Pid
	if err := f.Into(&reply); err != nil {
		return nil, err
	}
	s.Pid = reply.Pid
	if req.TTY {
		if len(fds) != 1 {
			wire.CloseAll(fds)
			_ = s.Kill() //nolint:contextcheck // also when ctx has ended
			return nil, fmt.Errorf("exec in container %s: its terminal was lost with the keeper's worker: %w", req.Key, errdefs.ErrAborted)
		}
		s.Console = file(fds[0], "console")
	}
	s.again = func(ctx context.Context) (*wire.Conn, error) {
		_, fds, err := s.reopen(ctx, wire.OpExecWait, wire.Target{Key: id}, nil)
		wire.CloseAll(fds)
		return s.conn, err
	}
	go s.await(func() {}) //nolint:contextcheck // the session outlives the request
	return s, nil
}

// Attach connects to a container's own streams. When the keeper's worker is replaced, the session
// goes on with the output that comes from then on.
func (c *Client) Attach(ctx context.Context, req *Attach) (*Session, error) {
	body := wire.AttachRequest{Attach: *req}
	files := given(&body.Stdio, map[int]*os.File{1: req.Stdout, 2: req.Stderr})
	kept, err := duplicate(files)
	if err != nil {
		return nil, fmt.Errorf("attach to container %s: %w", req.Key, err)
	}
	s := &Session{client: c, done: make(chan struct{})}
	open := func(ctx context.Context) (fds []int, err error) {
		_, fds, err = s.reopen(ctx, wire.OpAttach, body, kept)
		return fds, err
	}
	fds, err := open(ctx)
	if err != nil {
		wire.CloseAll(kept)
		return nil, fmt.Errorf("attach to container %s: %w", req.Key, err)
	}
	if len(fds) > 0 {
		s.Stdin = file(fds[0], "stdin")
		wire.CloseAll(fds[1:])
		s.left = func(ctx context.Context) { c.visit(ctx, req.Key) }
	}
	s.again = func(ctx context.Context) (*wire.Conn, error) {
		fds, err := open(ctx)
		wire.CloseAll(fds)
		return s.conn, err
	}
	go s.await(func() { wire.CloseAll(kept) }) //nolint:contextcheck // the session outlives the request
	return s, nil
}

// Wait waits for the end of the exec's process, or of the container that is attached to. It returns
// an error when the end cannot be learned, when an attach was cut off, or when ctx ends; that ends
// the waiting, not the session.
func (s *Session) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-s.done:
		return s.exit, s.err
	case <-ctx.Done():
		return Exit{}, context.Cause(ctx)
	}
}

// Kill ends the session: it kills an exec's process with its descendants, and ends an attach
// without touching the container.
func (s *Session) Kill() error {
	if s.execID != "" {
		err := s.client.Signal(context.Background(), s.execID, syscall.SIGKILL)
		if errdefs.IsNotFound(err) {
			err = nil // it has ended
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.killed = true
	if s.conn == nil {
		return nil
	}
	if err := s.conn.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil // its end was noticed already; a connection that comes instead is closed by open
}

// visit attaches to a container for a moment, without its output. A worker that has replaced another
// since a session ended knows nothing of that session, and input that ends with the first client
// (Create.StdinOnce) would stay open; one that knows finds it closed already.
func (c *Client) visit(ctx context.Context, key string) {
	conn, err := c.dial(ctx)
	if err == nil {
		var fds []int
		_, fds, err = ask(ctx, conn, wire.OpAttach, wire.AttachRequest{Attach: Attach{Key: key}}, nil)
		wire.CloseAll(fds)
		_ = conn.Close()
	}
	if err != nil && !errdefs.IsNotFound(err) {
		c.opt.Log.Warn("the keeper was not told that an attach has ended: the container's input may stay open", "container", key, "error", err)
	}
}

// open makes the session's connection and its request; errBroken when there was no answer.
func (s *Session) open(ctx context.Context, op string, body any, files []int) (*wire.Frame, []int, error) {
	conn, err := s.client.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	f, fds, err := ask(ctx, conn, op, body, files)
	if err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.killed {
		_ = conn.Close()
	}
	s.conn = conn
	return f, fds, nil
}

// reopen is open of what may be asked for again and again, as long as workers are replaced before they answer.
func (s *Session) reopen(ctx context.Context, op string, body any, files []int) (*wire.Frame, []int, error) {
	for range repeats {
		f, fds, err := s.open(ctx, op, body, files)
		if !errors.Is(err, errBroken) {
			return f, fds, err
		}
	}
	return nil, nil, fmt.Errorf("%s: the keeper's worker dies again and again: %w", op, errdefs.ErrUnavailable)
}

// ask sends a request and receives its answer; errBroken when there was none.
func ask(ctx context.Context, conn *wire.Conn, op string, body any, files []int) (*wire.Frame, []int, error) {
	f := &wire.Frame{ID: 1, Op: op}
	if err := f.SetBody(body); err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	err := conn.Send(f, files...)
	var fds []int
	if err == nil {
		f, fds, err = conn.Receive()
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, nil, context.Cause(ctx)
	case errors.Is(err, wire.ErrFrame):
		return nil, nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	case err != nil:
		return nil, nil, errBroken
	case f.Err() != nil:
		wire.CloseAll(fds)
		return nil, nil, classed(f.Err())
	}
	return f, fds, nil
}

// await receives the session's last frame, across replaced workers.
func (s *Session) await(end func()) {
	defer close(s.done)
	defer end()
	conn := s.conn
	for {
		f, fds, err := conn.Receive()
		if err == nil {
			wire.CloseAll(fds)
			_ = conn.Close()
			if s.err = classed(f.Err()); s.err == nil {
				s.err = f.Into(&s.exit)
			}
			return
		}
		_ = conn.Close()
		s.mu.Lock()
		killed := s.killed
		s.mu.Unlock()
		if killed {
			if s.left != nil {
				ctx, cancel := context.WithTimeout(context.Background(), startLimit)
				s.left(ctx)
				cancel()
			}
			s.err = fmt.Errorf("detached: %w", errdefs.ErrAborted)
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), startLimit)
		conn, err = s.again(ctx)
		cancel()
		if err != nil {
			s.err = err
			return
		}
	}
}

// given lists the files that are there and the numbers they have in the process.
func given(numbers *[]int, files map[int]*os.File) []int {
	var fds []int
	for n := range 3 {
		if f := files[n]; f != nil {
			*numbers = append(*numbers, n)
			fds = append(fds, descriptor(f))
		}
	}
	return fds
}

// descriptor is f's descriptor, without making it block as File.Fd may.
func descriptor(f *os.File) int {
	n := -1
	if rc, err := f.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { n = int(fd) })
	}
	return n
}

func duplicate(fds []int) ([]int, error) {
	var all []int
	for _, fd := range fds {
		d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			wire.CloseAll(all)
			return nil, fmt.Errorf("duplicate descriptor: %w", err)
		}
		all = append(all, d)
	}
	return all, nil
}

// file wraps a descriptor so that reads and writes wait in the runtime's poller.
func file(fd int, name string) *os.File {
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}
