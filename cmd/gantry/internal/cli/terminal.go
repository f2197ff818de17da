package cli

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"
	"k8s.io/client-go/tools/remotecommand"

	"gantry/cmd/gantry/internal/client"
)

// terminal is the user's streams, raw while a container's terminal is connected to them.
type terminal struct {
	io      client.IO
	restore func() // gives the terminal back; safe to call twice
}

// terminal prepares the streams. With tty and a standard input that is a terminal, that one becomes
// raw and its size is passed on; tty without one is allowed, for scripts.
func (a *app) terminal(stdin, tty bool) (*terminal, error) {
	t := &terminal{io: client.IO{Stdout: a.out, Stderr: a.err, TTY: tty}, restore: func() {}}
	if stdin {
		t.io.Stdin = a.std.In
	}
	if !tty {
		return t, nil
	}
	t.io.Stderr = nil
	fd := int(a.std.In.Fd())
	if !stdin || !term.IsTerminal(fd) {
		return t, nil
	}
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	sizes := newSizes(a.std.In)
	t.io.Sizes = sizes
	t.restore = func() {
		sizes.stop()
		_ = term.Restore(fd, old)
	}
	return t, nil
}

// sizes tells the terminal's size now and after every SIGWINCH.
type sizes struct {
	file    *os.File
	changed chan os.Signal
	ended   chan struct{}
}

func newSizes(f *os.File) *sizes {
	s := &sizes{file: f, changed: make(chan os.Signal, 1), ended: make(chan struct{})}
	signal.Notify(s.changed, syscall.SIGWINCH)
	s.changed <- syscall.SIGWINCH
	return s
}

func (s *sizes) Next() *remotecommand.TerminalSize {
	select {
	case <-s.ended:
		return nil
	case <-s.changed:
	}
	w, h, err := term.GetSize(int(s.file.Fd()))
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: uint16(w), Height: uint16(h)}
}

func (s *sizes) stop() {
	signal.Stop(s.changed)
	select {
	case <-s.ended:
	default:
		close(s.ended)
	}
}

var errDetached = errors.New("detached")

// The keys that leave an attached terminal: ctrl-p ctrl-q, as people know them from Docker.
const (
	detachFirst  = 16
	detachSecond = 17
)

// detacher looks for the detach keys in what is typed.
type detacher struct {
	in      io.Reader
	leave   func()
	pressed bool // the first key was the last byte typed; it is held back
}

func (d *detacher) Read(p []byte) (int, error) {
	if len(p) < 2 {
		return 0, io.ErrShortBuffer
	}
	n, err := d.in.Read(p[:len(p)-1])
	var out []byte
	for _, b := range p[:n] {
		switch {
		case d.pressed && b == detachSecond:
			d.leave()
			return 0, io.EOF
		case d.pressed:
			out = append(out, detachFirst)
		}
		if d.pressed = b == detachFirst; !d.pressed {
			out = append(out, b)
		}
	}
	return copy(p, out), err
}
