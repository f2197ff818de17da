package worker

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/crilog"
	"gantry/internal/keeper/wire"
)

// lines joins the entries of a log to lines, as a reader does.
func (s *stream) lines(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile(s.log.path)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	open := ""
	for line := range bytes.Lines(data) {
		if line[len(line)-1] != '\n' {
			t.Fatalf("a torn entry: %.80q", line)
		}
		e, err := crilog.Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		if open += string(e.Content); !e.Partial {
			all, open = append(all, open), ""
		}
	}
	return all
}

func (s *stream) take(t *testing.T, in int, text string) {
	t.Helper()
	for len(text) > 0 {
		n, err := unix.Write(in, []byte(text[:min(len(text), 16<<10)]))
		if err != nil {
			t.Fatal(err)
		}
		text = text[n:]
		s.pull(int(fdOf(s.src)), -1)
	}
}

// disk puts the stream's log on a file system of its own, of so many KiB.
func disk(t *testing.T, s *stream, kib int) (fill, empty func()) {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("disk", dir, "tmpfs", 0, fmt.Sprintf("size=%dk", kib)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	s.log.path = dir + "/log"
	fd, _, err := openLog(s.log.path)
	if err != nil {
		t.Fatal(err)
	}
	s.log.fd = fd
	fill = func() {
		f, err := os.Create(dir + "/filler")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.Write(make([]byte, 4096))
		}
	}
	return fill, func() {
		if err := os.Remove(dir + "/filler"); err != nil {
			t.Fatal(err)
		}
	}
}

func numbered(from, to int) string {
	var b strings.Builder
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	return b.String()
}

// The log goes on with whole lines when there is room, and what is missing is what was counted.
func TestFullDiskIsWaitedForAndThenDropsLines(t *testing.T) {
	s, in, reopen := fixture(t)
	fill, empty := disk(t, s, 256)
	s.log.bounds.FullWait = 50 * time.Millisecond
	s.take(t, in, numbered(0, 1000))
	fill()
	began := time.Now()
	s.take(t, in, numbered(1000, 9000))
	if took := time.Since(began); took < s.log.bounds.FullWait || took > 30*time.Second { // for each line it would be 400 s
		t.Errorf("the output was held up for %v, want the %v of the bound, once", took, s.log.bounds.FullWait)
	}
	reopen()
	empty()
	s.take(t, in, numbered(9000, 10000))
	checkNumbered(t, s, numbered(0, 10000))
	if s.st.droppedBytes() == 0 {
		t.Error("nothing was dropped")
	}
}

// checkNumbered wants lines of the text in their order, and as many bytes dropped as are missing.
func checkNumbered(t *testing.T, s *stream, text string) {
	t.Helper()
	want := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	next, logged := 0, 0
	for _, line := range s.lines(t) {
		i := slices.Index(want[next:], line)
		if i < 0 {
			t.Fatalf("%q after line %d is no line of the container", line, next)
		}
		next += i + 1
		logged += len(line) + 1
	}
	if got := int(s.st.droppedBytes()); logged+got != len(text) {
		t.Errorf("%d bytes are logged and %d dropped of %d", logged, got, len(text))
	}
	if last := s.lines(t); len(last) == 0 || last[len(last)-1] != want[len(want)-1] {
		t.Error("the last line is not in the log")
	}
}

// A line of which the beginning is in the log when the disk is full ends there; the next begins anew.
func TestLongLineThatIsCutIsEnded(t *testing.T) {
	s, in, _ := fixture(t)
	fill, empty := disk(t, s, 256)
	s.log.bounds.FullWait = time.Millisecond
	s.take(t, in, "before\n"+strings.Repeat("a", 40<<10))
	fill()
	s.take(t, in, strings.Repeat("b", 60<<10))
	empty()
	s.take(t, in, strings.Repeat("c", 40<<10)+"\nafter\n")
	got := s.lines(t)
	if len(got) != 3 || got[0] != "before" || got[2] != "after" {
		t.Fatalf("%d lines, want three with the cut one between the whole ones", len(got))
	}
	if cut := got[1]; strings.Trim(cut, "a") != strings.Repeat("b", strings.Count(cut, "b")) || strings.Contains(cut, "c") {
		t.Errorf("the line that was cut is %.40q… of %d bytes", cut, len(cut))
	}
	if total := len("before\nafter\n\n") + 140<<10; len(strings.Join(got, "\n"))+1+int(s.st.droppedBytes()) != total {
		t.Errorf("%d bytes are dropped", s.st.droppedBytes())
	}
}

// Where the end of a line was dropped whose beginning is in the log, the next does not continue it.
func TestLongLineWhoseEndIsDropped(t *testing.T) {
	s, in, _ := fixture(t)
	s.log.bounds.FullWait = time.Second
	s.take(t, in, strings.Repeat("a", 40<<10))
	s.log.bounds.Size = 1
	s.take(t, in, strings.Repeat("b", 60<<10)+"\ndropped\n")
	s.log.bounds.Size = 0
	s.take(t, in, "ends it\nwhole\n")
	got := s.lines(t)
	if len(got) != 2 || strings.Trim(got[0], "ab") != "" || got[1] != "whole" {
		t.Fatalf("%.20q", got)
	}
	if total := len("\ndropped\nends it\nwhole\n") + 100<<10; len(strings.Join(got, "\n"))+1+int(s.st.droppedBytes()) != total {
		t.Errorf("%d bytes are dropped", s.st.droppedBytes())
	}
}

func TestRateAndSizeDropWholeLines(t *testing.T) {
	for rule, b := range map[string]wire.LogBounds{"rate": {Rate: 20_000}, "size": {Size: 50_000}} {
		t.Run(rule, func(t *testing.T) {
			s, in, _ := fixture(t)
			s.log.bounds.LogBounds = b
			text := numbered(0, 20_000)
			began := time.Now()
			s.take(t, in, text)
			// An entry is up to seven times as long as its line, and what a rate lets through grows with the time.
			most := 250_000 + 7*b.Rate*int64(time.Since(began))/int64(time.Second)
			st, err := os.Stat(s.log.path)
			if err != nil {
				t.Fatal(err)
			}
			if st.Size() > most || st.Size() < 20_000 {
				t.Errorf("the log has %d bytes", st.Size())
			}
			if s.st.droppedBytes() == 0 {
				t.Error("nothing was dropped")
			}
			// The bounds are lifted: by time, or by a rotation.
			s.log.bounds.LogBounds = wire.LogBounds{FullWait: time.Second}
			s.take(t, in, numbered(20_000, 20_100))
			checkNumbered(t, s, text+numbered(20_000, 20_100))
		})
	}
}

func TestRateLetsAsMuchThroughAsItSays(t *testing.T) {
	b := bucket{rate: 1000}
	now, passed := time.Unix(1, 0), 0
	for range 1000 { // ten seconds, ten times too much
		now = now.Add(10 * time.Millisecond)
		if b.take(100, now) {
			passed += 100
		}
	}
	if passed < 10_000 || passed > 11_500 {
		t.Errorf("%d bytes in ten seconds, want 1000 a second and one second's worth saved", passed)
	}
}

// Whenever a worker dies, each byte is logged or counted.
func TestDroppedBytesAreCountedOnceThroughDeaths(t *testing.T) {
	s, in, reopen := fixture(t)
	s.log.bounds.Rate = 50_000
	text := numbered(0, 30_000)
	for rest := text; rest != ""; {
		n := min(len(rest), 1+rand.IntN(8000))
		s.take(t, in, rest[:n])
		rest = rest[n:]
		// A worker that noted a batch, to be dropped or logged, and died.
		if s.st.waiting() == 0 && len(rest) > 100 {
			if _, err := unix.Write(in, []byte(rest[:100])); err != nil {
				t.Fatal(err)
			}
			if _, err := s.st.fill(int(fdOf(s.src))); err != nil {
				t.Fatal(err)
			}
			raw := s.st.waits()[:100]
			was := s.st.lineNow()
			if rand.IntN(2) == 0 {
				s.st.drop(100, 100, was.dropped(raw))
				s.st.rec.done -= 100
			}
			rest = rest[100:]
		}
		reopen()
		s.recover()
	}
	s.log.bounds.LogBounds = wire.LogBounds{FullWait: time.Second}
	s.take(t, in, "\n"+numbered(30_000, 30_010))
	logged := 0
	for _, line := range s.lines(t) {
		logged += len(line) + 1
	}
	if total := len(text) + 1 + len(numbered(30_000, 30_010)); logged+int(s.st.droppedBytes()) != total {
		t.Errorf("%d bytes are logged and %d dropped of %d", logged, s.st.droppedBytes(), total)
	}
}
