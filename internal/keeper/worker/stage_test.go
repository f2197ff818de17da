package worker

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/crilog"
)

// fixture is a stream whose FIFO is a pipe and whose log is a file.
func fixture(t testing.TB) (s *stream, in int, reopen func()) {
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
	out := crilog.Format(nil, time.Unix(0, at), s.name, s.st.waits()[:900])
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
	half := strings.Repeat("one line\n", 7000)
	text := half + half
	for _, want := range []int{len(half), window - len(half)} {
		if _, err := unix.Write(in, []byte(half)); err != nil {
			t.Fatal(err)
		}
		if n, err := s.st.fill(int(fdOf(s.src))); n != want {
			t.Fatalf("fill: %d, %v", n, err)
		}
	}
	reopen()
	if s.pull(int(fdOf(s.src)), -1) {
		t.Fatal("the stream is closed")
	}
	if got := s.content(t); got != text {
		t.Errorf("%d bytes in the log, want %d", len(got), len(text))
	}
}

// pages is how much memory the stage takes.
func (s *stage) pages(t *testing.T) int {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(s.fd, &st); err != nil {
		t.Fatal(err)
	}
	return int(st.Blocks) * 512 / os.Getpagesize()
}

// Whatever the laps that the output takes in the stage, and wherever its worker dies, the log has it.
func TestOutputGoesRoundTheStage(t *testing.T) {
	s, in, reopen := fixture(t)
	text := numbered(0, 100_000)
	for rest := text; rest != ""; {
		n, err := unix.Write(in, []byte(rest[:min(len(rest), 1+rand.IntN(60_000))]))
		if err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
		if rand.IntN(2) == 0 { // a worker that dies when it has filled the stage, as far as there is room
			if _, err := s.st.fill(int(fdOf(s.src))); err != nil {
				t.Fatal(err)
			}
			reopen()
		}
		s.pull(int(fdOf(s.src)), -1)
	}
	if got := s.content(t); got != text {
		t.Errorf("%d bytes in the log, want %d", len(got), len(text))
	}
}

func TestWorkerDiesWhenALapIsNoted(t *testing.T) {
	for name, end := range map[string]string{"and nothing waits": "\n", "and an unfinished line waits": "y"} {
		t.Run(name, func(t *testing.T) {
			s, in, reopen := fixture(t)
			text := strings.Repeat("x", 9) + "\n" + strings.Repeat("12 bytes xx\n", window/12)
			text = text[:window-1] + end
			if _, err := unix.Write(in, []byte(text)); err != nil {
				t.Fatal(err)
			}
			if n, err := s.st.fill(int(fdOf(s.src))); n != window {
				t.Fatalf("fill: %d, %v", n, err)
			}
			s.append(false)
			s.st.rec.lap = int64(len(text))<<2 | lapKnown | lapMoves
			if _, err := unix.Seek(s.st.fd, areaAt+window, unix.SEEK_SET); err != nil { // where it was before
				t.Fatal(err)
			}
			reopen()
			text += "later\n"
			s.take(t, in, "later\n")
			if got := s.content(t); got != text {
				t.Errorf("%d bytes in the log, want %d", len(got), len(text))
			}
		})
	}
}

func TestStageAtRestIsSmall(t *testing.T) {
	s, in, _ := fixture(t)
	for _, rest := range []string{"", "a line that has no end", strings.Repeat("x", 9000), "\n"} {
		s.take(t, in, numbered(0, 20_000)+rest)
		if got, want := s.st.pages(t), 3+len(rest)/os.Getpagesize(); got > want {
			t.Errorf("%d pages where %d bytes wait, want %d", got, len(rest), want)
		}
	}
	for range 2 * window / len(oneLine) {
		s.take(t, in, oneLine)
		if got := s.st.pages(t); got > 3 {
			t.Fatalf("%d pages of single lines", got)
		}
	}
}

// A keeper that knows no area can go on with a stage at rest: what ever came follows page 0, what waits is there.
func TestStageAtRestHasNoArea(t *testing.T) {
	s, in, reopen := fixture(t)
	text := ""
	for _, more := range []string{"one line\n", "a line ", "of three", " parts\n", numbered(0, 20_000), "unfinished"} {
		s.take(t, in, more)
		text += more
		waits := text[strings.LastIndexByte(text, '\n')+1:]
		got := make([]byte, len(waits)+1)
		n, err := unix.Pread(s.st.fd, got, recordSize+int64(len(text)-len(waits)))
		if err != nil || string(got[:n]) != waits {
			t.Fatalf("%q at the file's end, %v, want %q", got[:n], err, waits)
		}
		if s.st.rec.lap != 0 {
			t.Errorf("the stage does not rest where %q waits", waits)
		}
		if len(text)%2 == 0 {
			reopen()
			s.st.rest()
		}
	}
	s.append(true)
	if got := s.content(t); got != text+"\n" {
		t.Errorf("%d bytes in the log, want %d", len(got), len(text)+1)
	}
}

func TestStageWithoutAnAreaGoesOn(t *testing.T) {
	for _, done := range []int{0, 5000, 30_000, 40_000, 60_000, 61_440, 70_000, 100_000, 125_000, 10_000_000} {
		for _, waits := range []int{0, 9, window/2 - window/2%9} {
			for _, died := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d bytes wait after %d, a worker died %v", waits, done, died), func(t *testing.T) {
					s, in, reopen := fixture(t)
					text := strings.Repeat(oneLine, waits/len(oneLine))
					s.st.withoutArea(t, int64(done), text)
					if died { // before what it carried was on record
						size := int64(done + len(text))
						s.st.rec.lap = size<<2 | lapMoves
						if _, err := s.st.carry(size); err != nil {
							t.Fatal(err)
						}
					}
					reopen()
					s.take(t, in, "later\n")
					if got := s.content(t); got != text+"later\n" {
						t.Errorf("%d bytes in the log, want %d", len(got), len(text)+6)
					}
				})
			}
		}
	}
}

// withoutArea makes the stage one in which waits comes after so many bytes that are in the log.
func (s *stage) withoutArea(t *testing.T, done int64, waits string) {
	t.Helper()
	for _, size := range []int64{0, recordSize + done} {
		if err := unix.Ftruncate(s.fd, size); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := unix.Pwrite(s.fd, []byte(waits), recordSize+done); err != nil {
		t.Fatal(err)
	}
	s.rec.done, s.rec.end = done, done
}
