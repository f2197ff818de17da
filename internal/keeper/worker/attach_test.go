package worker

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

// attached is a worker with a holder's link, and a container of it.
func attached(t *testing.T, s saved) (w *Worker, c *container) {
	t.Helper()
	w, c, _ = linked(t, s)
	return w, c
}

// linked is attached with the holder's end of the link.
func linked(t *testing.T, s saved) (w *Worker, c *container, holder *wire.Conn) {
	t.Helper()
	ours, theirs, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	link, err := wire.NewConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	if holder, err = wire.NewConn(theirs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = link.Close(); _ = holder.Close() })
	w = &Worker{opt: Options{StateDir: t.TempDir()}, containers: map[string]*container{}}
	w.holder.Store(link)
	c = w.newContainer(s)
	w.containers[s.Key] = c
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return w, c, holder
}

// Between the moment at which a restored process is known and that at which its streams are, nobody is told that he sees them.
func TestAttachWaitsForTheStreamsOfARestore(t *testing.T) {
	w, _ := attached(t, saved{Create: wire.Create{Key: "c", Restore: "/checkpoint"}, Phase: phaseStarting, Pid: 1})
	_, _, err := w.attach(wire.AttachRequest{Attach: wire.Attach{Key: "c"}}, nil)
	var e *wire.Error
	if !errors.As(err, &e) || e.Code != wire.CodePrecondition {
		t.Errorf("attach: %v, want %s", err, wire.CodePrecondition)
	}
}

// A full disk keeps no program waiting for the end of its input.
func TestInputEndsWhereItCannotBeNoted(t *testing.T) {
	_, c := attached(t, saved{Create: wire.Create{Key: "c", Stdin: true, StdinOnce: true}, Phase: phaseRunning, Pid: 1})
	kept, err := c.fifo("stdin", unix.O_RDWR|unix.O_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	c.held[fileStdin] = kept
	program, err := c.fifo("stdin", unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(program) }()
	if err := os.Mkdir(filepath.Join(c.dir, "stdin.closed"), 0o700); err != nil { // no file takes its place
		t.Fatal(err)
	}
	if err := c.closeStdin(); err == nil {
		t.Error("that the note failed was not told")
	}
	if n, err := unix.Read(program, make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("read %d bytes, %v, want the end of the input", n, err)
	}
}
