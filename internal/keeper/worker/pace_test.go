package worker

import (
	"bytes"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/crilog"
)

func TestPace(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	var p pace
	// rounds lets so many rounds follow one another and returns how many of them were put off.
	rounds := func(count int, apart time.Duration, bytes int) (late int) {
		for range count {
			now = now.Add(apart)
			wait := p.next(now)
			if wait > 0 {
				late++
			}
			if now = now.Add(wait); wait > gather || wait > 0 && now.Sub(p.ended) != gather {
				t.Fatalf("a round was put off by %v", wait)
			}
			p.end(bytes, now)
		}
		return late
	}
	for _, step := range []struct {
		name  string
		count int
		apart time.Duration
		bytes int
		late  int
	}{
		{"single lines are read at once", 100, gather, 100, 0},
		{"so are the first of a row", rowOfLines, gather / 100, 100, 0},
		{"the others wait", 100, gather / 100, 100, 100},
		{"a line after a silence does not", 1, time.Second, 100, 0},
		{"nor do the first of the next row", rowOfLines, gather / 2, 100, 0},
		{"of who writes much one does", 1000, gather / 100, plenty + 1, 1},
		{"those that were not put off may bring as much", 100 + rowOfLines, gather / 100, 100, 100 - 1},
	} {
		if late := rounds(step.count, step.apart, step.bytes); late != step.late {
			t.Errorf("%s: %d of %d were put off, want %d", step.name, late, step.count, step.late)
		}
	}
}

// Lines that follow one another closely are read together: they share a stamp. On a machine under load they may
// follow less closely than they should: one attempt of a few is enough.
func TestLinesAreGathered(t *testing.T) {
	const lines, attempts = 4000, 5
	var stamps int
	for range attempts {
		if stamps = stampsOfClose(t, lines); stamps <= lines/4 {
			return
		}
	}
	t.Errorf("%d lines have %d stamps, and no fewer in %d attempts", lines, stamps, attempts)
}

// stampsOfClose writes lines one soon after the other, wants all of them in the log, and returns how many stamps they have.
func stampsOfClose(t *testing.T, lines int) int {
	t.Helper()
	s, in, _ := fixture(t)
	var err error
	if s.rc, err = s.src.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	if s.fifo, err = watch(int(fdOf(s.src))); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	s.start(&wg)
	for range lines {
		if _, err = unix.Write(in, []byte(oneLine)); err != nil {
			t.Fatal(err)
		}
		for began := time.Now(); time.Since(began) < gather/20; {
		}
	}
	s.finish()
	s.close()
	wg.Wait()
	data, err := os.ReadFile(s.log.path)
	if err != nil {
		t.Fatal(err)
	}
	stamps, got := map[time.Time]bool{}, 0
	for line := range bytes.Lines(data) {
		e, err := crilog.Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		stamps[e.Time], got = true, got+1
	}
	if got != lines {
		t.Errorf("%d lines in the log, want %d", got, lines)
	}
	return len(stamps)
}
