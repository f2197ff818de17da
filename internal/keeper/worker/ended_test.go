package worker

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

// A process that is restored may end, and the holder say so, before its output is moved.
func TestExitWaitsForTheStreams(t *testing.T) {
	w := &Worker{opt: Options{StateDir: t.TempDir()}, containers: map[string]*container{}, ooms: watchOf(t, t.TempDir())}
	c := w.newContainer(saved{Create: wire.Create{Key: "c", Restore: "/checkpoint"}, Phase: phaseStarting, Pid: 1})
	w.containers["c"] = c
	exit := wire.Exit{Code: 3}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeExit(c.dir, exit); err != nil {
		t.Fatal(err)
	}
	w.ended("c", exit)
	if e := c.state().Exit; e != nil {
		t.Errorf("%+v is announced before there is a stream", e)
	}
	c.run()
	if e := c.state().Exit; e == nil || e.Code != 3 {
		t.Errorf("exit %+v, want 3", e)
	}
}

// A container may enlarge its FIFO, and what is in it at its end is read by two at once: by who waits for the end of the
// output, and by who reads it ever since.
func TestEndOfTheOutputWhileItMoves(t *testing.T) {
	s, in, _ := fixture(t)
	room, err := unix.FcntlInt(uintptr(in), unix.F_SETPIPE_SZ, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Repeat([]byte(oneLine), room/len(oneLine)/2)
	fd := int(fdOf(s.src))
	for want := 0; want < 50*len(lines); {
		n, err := unix.Write(in, lines)
		if err != nil {
			t.Fatal(err)
		}
		want += n
		moved := make(chan struct{})
		go func() {
			defer close(moved)
			for piece := int64(0); piece < int64(n); piece += window {
				s.pull(fd, 0)
			}
		}()
		for moving := true; moving; {
			select {
			case <-moved:
				moving = false
			default:
			}
			if got := s.reach(fd); got != int64(want) {
				<-moved
				t.Fatalf("the output ends at %d, want %d", got, want)
			}
		}
		s.pull(fd, -1)
	}
}

// What a full disk keeps from being recorded has not happened: a create that fails by it is one that is half made.
func TestPhaseIsThatOnRecord(t *testing.T) {
	w := &Worker{opt: Options{StateDir: t.TempDir()}}
	c := w.newContainer(saved{Create: wire.Create{Key: "c"}, Phase: phaseCreating})
	if err := os.MkdirAll(filepath.Join(c.dir, recordName), 0o700); err != nil { // no file takes a directory's place
		t.Fatal(err)
	}
	if err := c.save(phaseCreated); err == nil {
		t.Fatal("a record took a directory's place")
	}
	if !c.half() {
		t.Errorf("the container is %s, and was not recorded as that", c.state().Phase)
	}
}
