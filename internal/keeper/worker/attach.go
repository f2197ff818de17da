package worker

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"gantry/internal/crilog"
	"gantry/internal/keeper/wire"
)

// How a viewer is ended before the container is.
var (
	errSlow = wire.Errorf(wire.CodeAborted, "attach: the client is too slow and was cut off")
	errGone = wire.Errorf(wire.CodeNotFound, "attach: the container was deleted")
	errLeft = wire.Errorf(wire.CodeAborted, "attach: the client closed its streams")
)

// viewerPipe is how far a client may fall behind, in bytes, where the kernel allows it.
const viewerPipe = 1 << 20

// viewer is one attached client.
type viewer struct {
	c     *container
	files map[crilog.Stream]int
	stdin bool // was given the container's stdin

	once  sync.Once
	cause error
	done  chan struct{} // closed when the attach is over
}

// end is over with the viewer; cause is nil when the container has ended.
func (v *viewer) end(cause error) {
	v.once.Do(func() {
		v.cause = cause
		close(v.done)
	})
}

// attach shows a container's output, from now on, on the request's files, which it takes over, and
// returns the descriptor for input, -1 without one.
func (w *Worker) attach(req wire.AttachRequest, fds []int) (v *viewer, input int, err error) {
	c, err := w.find(req.Key)
	if err != nil {
		wire.CloseAll(fds)
		return nil, -1, err
	}
	if c.Restore != "" && !c.runs.Load() {
		wire.CloseAll(fds)
		return nil, -1, wire.Errorf(wire.CodePrecondition, "attach: container %s is restored when it starts", req.Key)
	}
	v = &viewer{c: c, files: map[crilog.Stream]int{}, done: make(chan struct{})}
	for i, n := range req.Stdio {
		if i >= len(fds) || n != 1 && n != 2 {
			wire.CloseAll(fds)
			return nil, -1, wire.Errorf(wire.CodeInvalid, "attach: stream %d", n)
		}
		name := crilog.Stdout
		if n == 2 {
			name = crilog.Stderr
		}
		v.files[name] = fds[i]
		_ = unix.SetNonblock(fds[i], true)
		_, _ = unix.FcntlInt(uintptr(fds[i]), unix.F_SETPIPE_SZ, viewerPipe)
	}
	if input, err = c.input(); err != nil {
		wire.CloseAll(fds)
		return nil, -1, err
	}
	v.stdin = input >= 0
	for _, s := range c.streams {
		if fd, ok := v.files[s.name]; ok && !s.join(v, fd) {
			v.end(errGone)
		}
	}
	go func() {
		select {
		case <-c.exited:
			v.end(nil)
		case <-v.done:
		}
	}()
	return v, input, nil
}

// leave ends what the viewer had. The container's stdin ends with the first client, where it says so.
func (v *viewer) leave() {
	v.end(errLeft)
	for _, s := range v.c.streams {
		s.mu.Lock()
		delete(s.viewers, v)
		s.mu.Unlock()
	}
	for _, fd := range v.files {
		_ = unix.Close(fd)
	}
	if v.stdin && v.c.StdinOnce && !v.c.TTY {
		if err := v.c.closeStdin(); err != nil {
			log.Print(err)
		}
	}
}

// input opens what a client writes to the container with: the terminal's master, or stdin's FIFO.
func (c *container) input() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.TTY {
		if master, ok := c.held[fileMaster]; ok {
			return unix.FcntlInt(uintptr(master), unix.F_DUPFD_CLOEXEC, 0)
		}
		return -1, nil
	}
	kept, ok := c.held[fileStdin]
	if !ok {
		return -1, nil
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", kept), unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open stdin: %w", err)
	}
	return fd, nil
}

// closeStdin gives up the write end that keeps the container's stdin open; a successor does not
// open it again, if there is room to note that.
func (c *container) closeStdin() error {
	noted := os.WriteFile(filepath.Join(c.dir, "stdin.closed"), nil, 0o600)
	if noted != nil {
		noted = fmt.Errorf("note that stdin is closed: %w", noted)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	fd, ok := c.held[fileStdin]
	if !ok {
		return noted
	}
	delete(c.held, fileStdin)
	_ = unix.Close(fd)
	return errors.Join(noted, c.w.tell(wire.OpDrop, wire.Names{Names: []string{c.Key + "/" + fileStdin}}))
}

// join shows the stream to v from here on; false when the stream is closed.
func (s *stream) join(v *viewer, fd int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.viewers == nil {
		return false
	}
	if len(s.viewers) == 0 {
		s.viewed = s.st.size
	}
	s.viewers[v] = fd
	return true
}

// show gives the viewers what came since they were shown something. One that does not take it is
// cut off: the log does not wait. The caller holds s.mu.
func (s *stream) show() {
	if len(s.viewers) == 0 || s.viewed == s.st.size {
		s.viewed = s.st.size
		return
	}
	data := s.st.from(s.viewed)
	s.viewed = s.st.size
	for v, fd := range s.viewers {
		if err := writeAll(fd, data); err != nil {
			delete(s.viewers, v)
			if errors.Is(err, unix.EPIPE) {
				err = errLeft
			} else {
				err = errSlow
			}
			v.end(err)
		}
	}
}

func writeAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}
