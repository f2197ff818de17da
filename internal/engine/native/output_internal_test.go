package native

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hurried is a pipe on a machine that stands still before every other read, until its deadline has passed.
type hurried struct {
	*os.File
	reads int
}

func (h *hurried) Read(p []byte) (int, error) {
	if h.reads++; h.reads%2 == 1 {
		return 0, os.ErrDeadlineExceeded
	}
	return h.File.Read(p)
}

func TestOutputOfAnEndedProcessOutlivesDeadlines(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()     // a child has it still
	const size = 50_000 // more than is read at once
	if _, err = w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	o := &output{file: &hurried{File: r}, to: &got}
	o.end()
	o.copy()
	if got.Len() != size {
		t.Errorf("%d bytes of %d were delivered", got.Len(), size)
	}
}

// late takes its time with each write, longer than what comes after a process's end is waited for.
type late struct{ bytes.Buffer }

func (l *late) Write(p []byte) (int, error) {
	<-time.After(2 * moment)
	return l.Buffer.Write(p)
}

// A terminal holds more than it says at once.
func TestOutputOfATerminalIsDeliveredToASlowClient(t *testing.T) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	master := os.NewFile(uintptr(fd), "master")
	defer master.Close()
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := unix.Open(fmt.Sprint("/dev/pts/", number), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(slave) }() // a child has it still
	const size = 9000
	for left := size; left > 0; {
		n, err := unix.Write(slave, bytes.Repeat([]byte{'x'}, left))
		if err != nil {
			t.Fatal(err)
		}
		left -= n
	}
	o := &output{file: master, to: new(late), terminal: true}
	o.end()
	o.copy()
	if got := o.to.(*late).Len(); got != size {
		t.Errorf("%d bytes of %d were delivered", got, size)
	}
}

// gated takes nothing until its gate is opened.
type gated struct {
	gate <-chan struct{}
	bytes.Buffer
}

func (g *gated) Write(p []byte) (int, error) {
	<-g.gate
	return g.Buffer.Write(p)
}

// A process that ended in time has all of its output delivered, also where its deadline passes meanwhile.
func TestDeadlineBehindTheEndDropsNoOutput(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	const text = "all that it has written"
	if _, err = w.WriteString(text); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	gate := make(chan struct{})
	to := &gated{gate: gate}
	s := &streams{outputs: []*output{{file: r, to: to}}}
	defer s.close()
	s.start()
	ctx, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	<-ctx.Done()
	opened := time.AfterFunc(moment, func() { close(gate) })
	defer opened.Stop()
	if err := s.finish(ctx); err != nil {
		t.Fatal(err)
	}
	if got := to.String(); got != text {
		t.Errorf("delivered %q, want %q", got, text)
	}
}
