package wire

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxPath is what a unix socket's address holds on every kernel, with some room.
const maxPath = 100

// SocketName is the name of the keeper's socket in its state directory.
const SocketName = "keeper.sock"

// Address returns a name of path that fits into a socket's address. A long path goes through a
// descriptor of its directory, valid until done is called.
func Address(path string) (address string, done func(), err error) {
	if len(path) <= maxPath {
		return path, func() {}, nil
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open %s: %w", filepath.Dir(path), err)
	}
	address = "/proc/" + strconv.Itoa(os.Getpid()) + "/fd/" + strconv.Itoa(dir) + "/" + filepath.Base(path)
	return address, func() { _ = unix.Close(dir) }, nil
}

// Listen makes the socket path, replacing a stale one.
func Listen(path string) (int, error) {
	address, done, err := Address(path)
	if err != nil {
		return -1, err
	}
	defer done()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	_ = unix.Unlink(path)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: address}), unix.Chmod(path, 0o600), unix.Listen(fd, 1024)); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("listen on %s: %w", path, err)
	}
	return fd, nil
}

// Dial connects to the socket path.
func Dial(path string) (*Conn, error) {
	address, done, err := Address(path)
	if err != nil {
		return nil, err
	}
	defer done()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	for {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: address})
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return NewConn(fd)
}

// Accept takes the next connection of a listening socket; it waits in the runtime's poller.
func Accept(l *os.File) (*Conn, error) {
	fd, err := accept(l)
	if err != nil {
		return nil, err
	}
	return NewConn(fd)
}

// AcceptFile is Accept for a connection that carries no frames.
func AcceptFile(l *os.File) (*os.File, error) {
	fd, err := accept(l)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), l.Name()), nil
}

func accept(l *os.File) (int, error) {
	rc, err := l.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("accept: %w", err)
	}
	fd := -1
	var acceptErr error
	err = rc.Read(func(s uintptr) bool {
		for {
			fd, _, acceptErr = unix.Accept4(int(s), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if !errors.Is(acceptErr, unix.EINTR) && !errors.Is(acceptErr, unix.ECONNABORTED) {
				return !errors.Is(acceptErr, unix.EAGAIN)
			}
		}
	})
	if err = errors.Join(err, acceptErr); err != nil {
		return -1, fmt.Errorf("accept: %w", err)
	}
	return fd, nil
}

// Pair returns two connected stream sockets.
func Pair() (a, b int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fmt.Errorf("socket pair: %w", err)
	}
	return fds[0], fds[1], nil
}

// ReceiveOne takes one descriptor from the first connection that already waits at a listening
// socket, as an OCI runtime sends a terminal to its console socket.
func ReceiveOne(listener int) (int, error) {
	fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("accept: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	var data [4096]byte
	var oob [64]byte
	n, oobn, _, _, err := unix.Recvmsg(fd, data[:], oob[:], unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return -1, fmt.Errorf("receive descriptor: %w", err)
	}
	fds, err := rights(oob[:oobn])
	if err != nil {
		return -1, err
	}
	if len(fds) != 1 {
		CloseAll(fds)
		return -1, fmt.Errorf("receive descriptor: %d in %d bytes: %w", len(fds), n, io.ErrUnexpectedEOF)
	}
	return fds[0], nil
}
