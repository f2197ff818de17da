package keeper_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"gantry/internal/crilog"
)

// kills is how often the worker is killed: GANTRY_KILLS, else few enough for every day.
func kills(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("GANTRY_KILLS"))
	if err != nil {
		return 30
	}
	return n
}

// numbers writes numbered lines as fast as it can until /shared/stop is there, then exits with 7.
const numbers = `n=0; while ! [ -e /shared/stop ]; do seq $((n+1)) $((n+20000)); n=$((n+20000)); done; exit 7`

// checker follows a log of numbered lines through its rotations.
type checker struct {
	t    *testing.T
	tty  bool
	next int
	line []byte // of entries tagged P
}

// file checks that path continues exactly where the last one ended.
func (c *checker) file(path string) {
	c.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	r := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := r.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return
		}
		if err != nil {
			c.t.Fatalf("%s after line %d: torn entry %.100q: %v", path, c.next, line, err)
		}
		e, err := crilog.Parse(line)
		if err != nil {
			c.t.Fatalf("%s after line %d: %v: %.100q", path, c.next, err, line)
		}
		if c.line = append(c.line, e.Content...); e.Partial {
			continue
		}
		got := c.line
		if c.tty {
			got = bytes.TrimSuffix(got, []byte{'\r'})
		}
		if c.next++; string(got) != strconv.Itoa(c.next) {
			c.t.Fatalf("%s: line %d is %.100q", path, c.next, got)
		}
		c.line = c.line[:0]
	}
}

func TestKilledWorkerLosesNothing(t *testing.T) {
	for name, tty := range map[string]bool{"pipes": false, "terminal": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			check := &checker{t: t, tty: tty}
			c := container{script: numbers}
			c.TTY = tty
			req := b.run("writer", c)
			n := kills(t)
			for i := range n {
				<-time.After(time.Duration(rand.IntN(12_000)) * time.Microsecond) // a random moment
				b.kill(b.worker)
				if i%20 == 19 { // the log is rotated as the kubelet does, in the middle of it all
					old := fmt.Sprintf("%s.%d", req.LogPath, i)
					if err := os.Rename(req.LogPath, old); err != nil {
						t.Fatal(err)
					}
					if err := b.ReopenLog(b.context(), "writer"); err != nil {
						t.Fatalf("reopen: %v", err)
					}
					check.file(old)
					if err := os.Remove(old); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := os.WriteFile(filepath.Join(b.shared(), "stop"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			if e := b.exit("writer"); e.Code != 7 || e.Unknown {
				t.Errorf("exit %+v, want code 7", e)
			}
			check.file(req.LogPath)
			if check.next == 0 || check.next%20000 != 0 || len(check.line) > 0 {
				t.Errorf("the log ends after line %d and %q", check.next, check.line)
			}
			t.Logf("%d lines through %d kills", check.next, n)
		})
	}
}
