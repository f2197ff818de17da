package worker

import (
	"bytes"
	"os"
	"sync"
	"sync/atomic"
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

// Lines that follow one another closely are read together: they share a stamp.
func TestLinesAreGathered(t *testing.T) {
	s, in, _ := fixture(t)
	var err error
	if s.rc, err = s.src.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	if s.fifo, err = watch(int(fdOf(s.src))); err != nil {
		t.Fatal(err)
	}
	putOff, goOn, over := make(chan time.Duration), make(chan struct{}), make(chan struct{})
	now := time.Unix(1_700_000_000, 0) // whatever the machine does, every line comes soon after the one before
	var asked atomic.Int32             // for the time, twice a round
	s.clock = clock{
		now: func() time.Time { asked.Add(1); return now },
		pause: func(d time.Duration) {
			select {
			case putOff <- d:
				<-goOn
			case <-over:
			}
		},
	}
	var wg sync.WaitGroup
	s.start(&wg)
	write := func() {
		t.Helper()
		if _, err = unix.Write(in, []byte(oneLine)); err != nil {
			t.Fatal(err)
		}
	}
	lines := 0
	for off := false; !off; {
		write()
		for lines++; !off && len(s.stamps(t)) < lines; {
			if rounds := asked.Load() / 2; rounds > 1+rowOfLines { // the first comes after a silence
				t.Fatalf("of %d rounds none was put off", rounds)
			}
			select {
			case d := <-putOff:
				off = d == gather
			case <-time.After(time.Millisecond): // the log tells nobody that it has grown
			}
		}
	}
	before := len(s.stamps(t))
	for range 50 {
		write()
		lines++
	}
	goOn <- struct{}{}
	for len(s.stamps(t)) < lines {
		<-time.After(time.Millisecond)
	}
	close(over)
	s.finish()
	s.close()
	wg.Wait()
	stamps := s.stamps(t)
	if len(stamps) != lines {
		t.Errorf("%d lines in the log, want %d", len(stamps), lines)
	}
	for _, at := range stamps[before:] {
		if !at.Equal(stamps[before]) {
			t.Errorf("what was put off has the stamps %v and %v", stamps[before], at)
		}
	}
}

// stamps are those of the entries in the log.
func (s *stream) stamps(t *testing.T) (all []time.Time) {
	t.Helper()
	data, err := os.ReadFile(s.log.path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		e, err := crilog.Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e.Time)
	}
	return all
}
