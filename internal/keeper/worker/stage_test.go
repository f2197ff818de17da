package worker

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/crilog"
)

// fixture is a stream whose FIFO is a pipe and whose log is a file.
func fixture(t *testing.T) (s *stream, in int, reopen func()) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	memory, err := newStage("test")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "log")
	s = &stream{name: crilog.Stdout, format: plain{crilog.Stdout}, via: [2]int{-1, -1}, src: os.NewFile(uintptr(p[0]), "fifo"), log: &logFile{path: path, stop: make(chan struct{})}}
	if s.log.fd, _, err = openLog(path); err != nil {
		t.Fatal(err)
	}
	// A successor has nothing but the descriptor.
	reopen = func() {
		if s.st, err = openStage(memory); err != nil {
			t.Fatal(err)
		}
	}
	reopen()
	return s, p[1], reopen
}

func (s *stream) content(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(s.log.path)
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for line := range bytes.Lines(data) {
		e, err := crilog.Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		all = append(append(all, e.Content...), '\n')
	}
	return string(all)
}

const oneLine = "one line\n"

// interrupted is the stream of a worker that died when so many bytes of a batch of 100 lines were in the log; 900 more lines wait.
func interrupted(t *testing.T, written int) (s *stream, in int) {
	t.Helper()
	s, in, reopen := fixture(t)
	text := strings.Repeat(oneLine, 1000)
	if _, err := unix.Write(in, []byte(text)); err != nil {
		t.Fatal(err)
	}
	if n, err := s.st.fill(int(fdOf(s.src))); n != len(text) {
		t.Fatalf("fill: %d, %v", n, err)
	}
	const at = 1_700_000_000_123_456_789
	s.st.begin(900, at, 0)
	raw, err := s.st.read(make([]byte, 900), 0)
	if err != nil {
		t.Fatal(err)
	}
	out := crilog.Format(nil, time.Unix(0, at), s.name, raw)
	if _, err := unix.Write(s.log.fd, out[:min(written, len(out))]); err != nil {
		t.Fatal(err)
	}
	reopen()
	return s, in
}

// noFile is a descriptor that nothing can be asked of.
const noFile = 1 << 20

func TestBatchIsCompletedByASuccessor(t *testing.T) {
	for name, part := range map[string]int{"nothing was written": 0, "half was written": 5000, "all was written": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			s, _ := interrupted(t, part)
			s.recover()
			s.append(false)
			if got := s.content(t); got != strings.Repeat(oneLine, 1000) {
				t.Errorf("%d bytes in the log, want %d", len(got), 1000*len(oneLine))
			}
		})
		t.Run(name+" and nobody can say how much", func(t *testing.T) {
			s, _ := interrupted(t, part)
			fd := s.log.fd
			s.log.fd = noFile
			s.recover()
			s.log.fd = fd
			s.append(false)
			if got := s.content(t); got != strings.Repeat(oneLine, 1000) {
				t.Errorf("%d bytes in the log, want %d", len(got), 1000*len(oneLine))
			}
		})
	}
}

// A log whose size nobody can tell for longer than output waits loses what waited, and counts it.
func TestOutputForALogOfUnknownSizeIsDroppedInTime(t *testing.T) {
	s, in := interrupted(t, 0)
	s.log.bounds.FullWait = 20 * time.Millisecond
	fd := s.log.fd
	s.log.fd = noFile
	s.recover()
	s.append(false)
	s.log.fd = fd
	if dropped := s.st.droppedBytes(); dropped != int64(1000*len(oneLine)) {
		t.Errorf("%d bytes were dropped, want %d", dropped, 1000*len(oneLine))
	}
	s.take(t, in, "later\n")
	if got := s.content(t); got != "later\n" {
		t.Errorf("the log has %.60q", got)
	}
}

func TestFullStageOfAPredecessorStallsNothing(t *testing.T) {
	s, in, reopen := fixture(t)
	text := strings.Repeat("one line\n", 7000)
	if _, err := unix.Write(in, []byte(text)); err != nil {
		t.Fatal(err)
	}
	if n, err := s.st.fill(int(fdOf(s.src))); n != window {
		t.Fatalf("fill: %d, %v", n, err)
	}
	reopen()
	if s.pull(int(fdOf(s.src)), -1) {
		t.Fatal("the stream is closed")
	}
	if got := s.content(t); got != text {
		t.Errorf("%d bytes in the log, want %d", len(got), len(text))
	}
}
