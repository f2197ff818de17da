package worker

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// fifo reads a FIFO by rounds. What comes before a round has ended wakes nobody: Go's poller is woken by each write, as long
// as a file is in it. So there is an epoll instance in between, which is told to look after each round.
type fifo struct {
	*os.File
	watched int // the FIFO
	poll    syscall.RawConn
}

// openFIFO opens the FIFO kept once more, for reading alone, and what watches it.
func openFIFO(kept int, name string) (*os.File, *fifo, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", kept), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	if err = unix.SetNonblock(fd, false); err != nil { // Go's poller takes every other
		_ = unix.Close(fd)
		return nil, nil, err
	}
	src := os.NewFile(uintptr(fd), name)
	f, err := watch(fd)
	if err != nil {
		_ = src.Close()
		return nil, nil, err
	}
	return src, f, nil
}

func watch(fd int) (*fifo, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, once()); err == nil {
		err = unix.SetNonblock(epoll, true)
	}
	if err != nil {
		_ = unix.Close(epoll)
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	f := &fifo{File: os.NewFile(uintptr(epoll), "epoll"), watched: fd}
	if f.poll, err = f.SyscallConn(); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func once() *unix.EpollEvent { return &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT} }

// rounds calls round now, and whenever there is something to read that came after the last, until it returns true or the
// fifo is closed.
func (f *fifo) rounds(round func(fd uintptr) (closed bool)) {
	var events [1]unix.EpollEvent
	_ = f.poll.Read(func(epoll uintptr) bool {
		_, _ = unix.EpollWait(int(epoll), events[:], 0) // from here on nothing more is told
		return round(uintptr(f.watched)) || unix.EpollCtl(int(epoll), unix.EPOLL_CTL_MOD, f.watched, once()) != nil
	})
}
