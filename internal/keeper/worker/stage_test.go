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

func TestBatchIsCompletedByASuccessor(t *testing.T) {
	text := strings.Repeat("one line\n", 1000)
	for name, part := range map[string]int{"nothing was written": 0, "half was written": 5000, "all was written": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			s, in, reopen := fixture(t)
			if _, err := unix.Write(in, []byte(text)); err != nil {
				t.Fatal(err)
			}
			if n, err := s.st.fill(int(fdOf(s.src))); n != len(text) {
				t.Fatalf("fill: %d, %v", n, err)
			}
			// A worker dies in the middle of a batch.
			const at = 1_700_000_000_123_456_789
			s.st.begin(900, at, 0)
			raw, err := s.st.read(make([]byte, 900), 0)
			if err != nil {
				t.Fatal(err)
			}
			out := crilog.Format(nil, time.Unix(0, at), s.name, raw)
			if _, err := unix.Write(s.log.fd, out[:min(part, len(out))]); err != nil {
				t.Fatal(err)
			}
			reopen()
			s.recover()
			s.append(false)
			if got := s.content(t); got != text {
				t.Errorf("%d bytes in the log, want %d", len(got), len(text))
			}
		})
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
