package wire

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is a connection that carries frames. Send may be called from several goroutines, Receive
// from one.
type Conn struct {
	f  *os.File
	rc syscall.RawConn

	wmu sync.Mutex // serialises Send

	buf   []byte // received, not yet decoded
	files []int  // received, not yet taken by a frame
}

// NewConn takes over the stream socket fd. No child inherits it: the other side learns of this
// process's end.
func NewConn(fd int) (*Conn, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("keeper connection: %w", err)
	}
	f := os.NewFile(uintptr(fd), "keeper connection")
	rc, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("keeper connection: %w", err)
	}
	return &Conn{f: f, rc: rc}, nil
}

// Close ends the connection; a Receive under way returns an error.
func (c *Conn) Close() error { return c.f.Close() }

// SetWriteDeadline bounds the next Sends.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.f.SetWriteDeadline(t) }

// Send sends f with descriptors, which stay the caller's. A frame that fits into one packet is
// sent whole or not at all, also when the sender is killed.
func (c *Conn) Send(f *Frame, fds ...int) error {
	data, err := Append(nil, f, len(fds))
	if err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	var sendErr error
	err = c.rc.Write(func(fd uintptr) bool {
		for len(data) > 0 {
			var n int
			n, sendErr = unix.SendmsgN(int(fd), data, oob, nil, unix.MSG_NOSIGNAL)
			switch {
			case errors.Is(sendErr, unix.EAGAIN):
				sendErr = nil
				return false
			case errors.Is(sendErr, unix.EINTR):
				continue
			case sendErr != nil:
				return true
			}
			data, oob = data[n:], nil
		}
		return true
	})
	if err = errors.Join(err, sendErr); err != nil {
		return fmt.Errorf("send %s: %w", f.Op, err)
	}
	return nil
}

// Receive returns the next frame and its descriptors, which are the caller's from then on and have
// close-on-exec set. io.EOF is the end of the connection.
func (c *Conn) Receive() (*Frame, []int, error) {
	for {
		f, n, used, err := Decode(c.buf)
		if err != nil {
			return nil, nil, err
		}
		if used > 0 {
			if n > len(c.files) {
				return nil, nil, fmt.Errorf("%w: %d descriptors announced, %d came", ErrFrame, n, len(c.files))
			}
			fds := c.files[:n:n]
			c.files = c.files[n:]
			if c.buf = c.buf[used:]; len(c.buf) == 0 {
				c.buf = nil
			}
			return f, fds, nil
		}
		if err := c.fill(); err != nil {
			CloseAll(c.files)
			c.files = nil
			return nil, nil, err
		}
	}
}

func (c *Conn) fill() error {
	var part [8192]byte
	var oob [4 * (MaxFiles + 8)]byte
	var n, oobn, flags int
	var recvErr error
	err := c.rc.Read(func(fd uintptr) bool {
		for {
			n, oobn, flags, _, recvErr = unix.Recvmsg(int(fd), part[:], oob[:], unix.MSG_CMSG_CLOEXEC)
			if !errors.Is(recvErr, unix.EINTR) {
				return !errors.Is(recvErr, unix.EAGAIN)
			}
		}
	})
	if errors.Is(recvErr, unix.ECONNRESET) { // it left something unread; all it sent has been received
		return io.EOF
	}
	if err = errors.Join(err, recvErr); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	if oobn > 0 {
		fds, err := rights(oob[:oobn])
		if err != nil {
			return err
		}
		c.files = append(c.files, fds...)
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return fmt.Errorf("%w: descriptors were cut off", ErrFrame)
	}
	if n == 0 {
		return io.EOF
	}
	c.buf = append(c.buf, part[:n]...)
	return nil
}

func rights(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receive descriptors: %w", err)
	}
	var all []int
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return nil, fmt.Errorf("receive descriptors: %w", err)
		}
		all = append(all, fds...)
	}
	return all, nil
}

// CloseAll closes descriptors.
func CloseAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
