package native

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// moment is how long a child that keeps a pipe open may delay the end of an exec.
const moment = 50 * time.Millisecond

// terminalMost is more than a terminal holds of what its master has not read, in bytes.
const terminalMost = 64 << 10

// pipe is the end of a pipe that is read, or a terminal's master.
type pipe interface {
	io.ReadCloser
	syscall.Conn
	SetReadDeadline(t time.Time) error
}

// output copies what a process writes to a client.
type output struct {
	file     pipe
	to       io.Writer
	terminal bool        // file is a terminal's master
	ended    atomic.Bool // the process has; see end
}

// end says that the process has ended: what is in the pipe now is all of its output. copy delivers
// that much, however slow the client is, and what else comes within a moment.
func (o *output) end() {
	o.ended.Store(true)
	_ = o.file.SetReadDeadline(time.Now().Add(moment))
}

// copy returns at the end of the stream, when the client takes no more, or as end says.
func (o *output) copy() {
	buf := make([]byte, 32<<10)
	left, rest, until := -1, 0, time.Time{} // bytes owed, and the moment's end; known once the process has ended
	for {
		ended := o.ended.Load()
		if ended && left < 0 {
			left, rest, until = o.buffered(), terminalMost, time.Now().Add(moment)
		}
		if ended {
			if left == 0 && time.Now().After(until) {
				return
			}
			_ = o.file.SetReadDeadline(time.Now().Add(moment))
		}
		n, err := o.file.Read(buf)
		if n > 0 {
			if _, gone := o.to.Write(buf[:n]); gone != nil {
				return
			}
			left = max(left-n, min(left, 0))
			if o.terminal && left == 0 && rest > 0 { // it says no more than what fits into the first of its buffers
				left = min(o.buffered(), rest)
				rest -= left
			}
		}
		switch {
		case err == nil:
		case !errors.Is(err, os.ErrDeadlineExceeded) || ended && left == 0:
			return
		case ended:
			left = min(o.buffered(), left)
		}
		// A deadline that passed while the client was slow, or the machine was before the read, says nothing about the pipe.
	}
}

// buffered is how many bytes wait in the pipe or terminal.
func (o *output) buffered() int {
	n := 0
	conn, err := o.file.SyscallConn()
	if err != nil {
		return 0
	}
	_ = conn.Control(func(fd uintptr) {
		if o.terminal { // what was written to it comes a moment later, unless somebody asks like this
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		}
		n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
	})
	return n
}

// copyInput copies until the client or the process takes no more.
func copyInput(to *os.File, from io.Reader) { _, _ = io.Copy(onlyWriter{to}, from) }

// onlyWriter hides ReadFrom, which would splice and hold the file while the client is silent.
type onlyWriter struct{ io.Writer }

// forProgram makes an end of a pipe what the program that gets it expects: os.Pipe's never block, and
// only root of the node may open them anew, as /dev/stdout. They have no other name.
func forProgram(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = conn.Control(func(fd uintptr) {
		setErr = errors.Join(unix.SetNonblock(int(fd), false), unix.Fchmod(int(fd), 0o666))
	})
	return errors.Join(err, setErr)
}
