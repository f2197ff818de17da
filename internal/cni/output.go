package cni

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// output is what a process writes to a pipe.
type output struct {
	r    *os.File
	buf  bytes.Buffer  // of the reader's until done
	done chan struct{} // closed when nothing is read any more
}

// newOutput returns the end of the pipe that the process gets, for the caller to close once it has it.
func newOutput() (*output, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("output of a plugin: %w", err)
	}
	o := &output{r: r, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		_, _ = io.Copy(&o.buf, r)
	}()
	return o, w, nil
}

// end returns what was written, after the process has ended. Where others hold the pipe it waits for them no longer than
// limit, and says so; all that is in the pipe by then is returned, however late the reading comes to it.
func (o *output) end(limit time.Duration) (all []byte, held bool) {
	defer func() { _ = o.r.Close() }()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-o.done:
		return o.buf.Bytes(), false
	case <-t.C:
	}
	_ = o.r.SetReadDeadline(time.Now())
	<-o.done
	raw, err := o.r.SyscallConn()
	if err != nil {
		return o.buf.Bytes(), true
	}
	_ = raw.Control(func(fd uintptr) { held = o.drain(int(fd)) })
	return o.buf.Bytes(), held
}

// drain reads what is in the pipe now: whoever holds it may write for ever.
func (o *output) drain(fd int) (held bool) {
	left, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return true
	}
	chunk := make([]byte, 32<<10)
	for {
		n, err := unix.Read(fd, chunk[:min(len(chunk), max(left, 1))])
		switch {
		case errors.Is(err, unix.EINTR):
		case n <= 0:
			return err != nil // nobody holds a pipe that has an end
		case left <= 0:
			return true
		default:
			o.buf.Write(chunk[:n])
			left -= n
		}
	}
}
