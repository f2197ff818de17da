package worker

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/crilog"
	"gantry/internal/keeper/logdriver"
	"gantry/internal/keeper/wire"
)

// framed is a stream of dockerd's frames.
func framed(t *testing.T) (s *stream, in int, reopen func()) {
	t.Helper()
	s, in, again := fixture(t)
	s.logged = func(st *stage, raw []byte) { st.rec.open = int64(logdriver.Open(st.rec.open).After(raw)) }
	reopen = func() {
		again()
		s.format = frames{s.st}
	}
	reopen()
	return s, in, reopen
}

// piece is the most that dockerd has of a line in a frame.
const piece = 16 << 10

// framesOf are the frames of one line.
func framesOf(source crilog.Stream, line string) (all []string) {
	for {
		e := logdriver.Entry{Source: source, Time: 1772600767000000080, Line: []byte(line[:min(len(line), piece)]), Partial: len(line) > piece}
		all = append(all, string(logdriver.Append(nil, &e)))
		if !e.Partial {
			return all
		}
		line = line[piece:]
	}
}

// linesOf joins the entries of one source. A line that is not ended is an error.
func (s *stream) linesOf(t *testing.T, source crilog.Stream) (all []string) {
	t.Helper()
	data, err := os.ReadFile(s.log.path)
	if err != nil {
		t.Fatal(err)
	}
	open := ""
	for line := range bytes.Lines(data) {
		e, err := crilog.Parse(line)
		if err != nil || line[len(line)-1] != '\n' {
			t.Fatalf("%v: %.80q", err, line)
		}
		if e.Stream != source {
			continue
		}
		if open += string(e.Content); !e.Partial {
			all, open = append(all, open), ""
		}
	}
	if open != "" {
		t.Errorf("%s ends in the middle of a line", source)
	}
	return all
}

// TestDockersLongLineThatIsCutIsEnded has the disk fill up in the middle of a line of one source; the other has none
// that is cut.
func TestDockersLongLineThatIsCutIsEnded(t *testing.T) {
	s, in, _ := framed(t)
	fill, empty := disk(t, s, 256)
	s.log.bounds.FullWait = time.Millisecond
	cut := framesOf(crilog.Stdout, strings.Repeat("a", 2*piece)+strings.Repeat("b", 2*piece)+"c")
	next := framesOf(crilog.Stdout, "joins nothing")
	s.take(t, in, framesOf(crilog.Stdout, "before")[0]+cut[0]+cut[1])
	fill()
	s.take(t, in, cut[2]+framesOf(crilog.Stderr, "dropped")[0])
	empty()
	s.take(t, in, cut[3]+framesOf(crilog.Stderr, "whole")[0]+cut[4]+next[0])
	if got, want := fmt.Sprintf("%.20q", s.linesOf(t, crilog.Stdout)), fmt.Sprintf("%.20q", []string{"before", strings.Repeat("a", 2*piece), "joins nothing"}); got != want {
		t.Errorf("stdout: %s; want %s", got, want)
	}
	if got := s.linesOf(t, crilog.Stderr); len(got) != 1 || got[0] != "whole" {
		t.Errorf("stderr: %q", got)
	}
	if got, want := int(s.st.droppedBytes()), 2*piece+len("c")+len("dropped\n"); got != want {
		t.Errorf("%d bytes are dropped, want %d", got, want)
	}
}

// A line whose end is dropped, too, is ended all the same before the next.
func TestDockersLineWhoseEndIsDropped(t *testing.T) {
	s, in, _ := framed(t)
	s.log.bounds.FullWait = time.Second
	cut := framesOf(crilog.Stdout, strings.Repeat("a", piece)+"b")
	s.take(t, in, cut[0])
	s.log.bounds.Size = 1
	s.take(t, in, cut[1]+framesOf(crilog.Stdout, "dropped")[0])
	s.log.bounds.Size = 0
	s.take(t, in, framesOf(crilog.Stdout, "ends it")[0]+framesOf(crilog.Stdout, "whole")[0])
	got := s.linesOf(t, crilog.Stdout)
	if len(got) != 2 || got[0] != strings.Repeat("a", piece) || got[1] != "whole" {
		t.Errorf("%.20q", got)
	}
}

// TestDockersDroppedBytesAreCountedOnceThroughDeaths ends the worker again and again in the middle of a batch.
func TestDockersDroppedBytesAreCountedOnceThroughDeaths(t *testing.T) {
	s, in, reopen := framed(t)
	s.log.bounds.Rate = 200_000
	lines, total := map[crilog.Stream][]string{}, 0
	write := func(many int) {
		var pieces [2][]string
		for i, source := range []crilog.Stream{crilog.Stdout, crilog.Stderr} {
			for range many {
				line := fmt.Sprintf("%s %d %s.", source, len(lines[source]), strings.Repeat("x", rand.IntN(20)*rand.IntN(2000)))
				lines[source], total = append(lines[source], line), total+len(line)+1
				pieces[i] = append(pieces[i], framesOf(source, line)...)
			}
		}
		for len(pieces[0])+len(pieces[1]) > 0 {
			i := rand.IntN(2)
			if len(pieces[i]) == 0 {
				i = 1 - i
			}
			if rand.IntN(3) == 0 {
				s.die(t, in, pieces[i][0])
				reopen()
				s.recover()
			} else {
				s.take(t, in, pieces[i][0])
			}
			pieces[i] = pieces[i][1:]
		}
	}
	write(300)
	s.log.bounds.LogBounds = wire.LogBounds{FullWait: time.Second}
	write(5)
	if s.st.droppedBytes() == 0 {
		t.Error("nothing was dropped")
	}
	logged := 0
	for source, want := range lines {
		for _, line := range s.linesOf(t, source) {
			logged += len(line) + 1
			for len(want) > 0 && want[0] != line && (len(line)%piece != 0 || !strings.HasPrefix(want[0], line)) {
				want = want[1:]
			}
			if len(want) == 0 {
				t.Fatalf("%.40q is no line of the container, nor the beginning of one", line)
			}
			want = want[1:]
		}
		if len(want) != 0 {
			t.Errorf("the last lines of %s are not in the log", source)
		}
	}
	if got := int(s.st.droppedBytes()); logged+got != total {
		t.Errorf("%d bytes are logged and %d dropped of %d", logged, got, total)
	}
}

// die leaves what a worker leaves that is killed while it appends a batch.
func (s *stream) die(t *testing.T, in int, frame string) {
	t.Helper()
	if s.st.waiting() > 0 {
		t.Fatal("something is left from before")
	}
	if _, err := unix.Write(in, []byte(frame)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.st.fill(int(fdOf(s.src))); err != nil {
		t.Fatal(err)
	}
	raw, was := []byte(frame), s.st.lineNow()
	drop, _ := s.resume(was, raw)
	if drop > 0 || !s.log.room(len(raw), time.Now()) {
		s.log.drop(s, raw, s.dropped(was, raw))
		s.st.rec.done -= int64(len(raw))
		return
	}
	size, err := s.log.size()
	if err != nil {
		t.Fatal(err)
	}
	s.st.begin(len(raw), time.Now().UnixNano(), size)
	s.st.setLine(s.kept(was, raw))
	if text := s.entries(nil, time.Now(), raw, was); rand.IntN(2) == 0 {
		if _, err := unix.Write(s.log.fd, text[:rand.IntN(len(text)+1)]); err != nil {
			t.Fatal(err)
		}
	}
}
