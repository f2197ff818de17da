package keeper_test

import (
	"bufio"
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"gantry/internal/crilog"
	"gantry/internal/keeper"
)

// increasing reads a log of numbered lines of which some are missing, and returns how many bytes of output it holds and
// the last number.
func increasing(t *testing.T, path string) (output int64, last int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var line []byte
	for entries := bufio.NewScanner(f); entries.Scan(); {
		e, err := crilog.Parse(entries.Bytes())
		if err != nil {
			t.Fatalf("after line %d: %v: %.100q", last, err, entries.Bytes())
		}
		if line = append(line, e.Content...); e.Partial {
			continue
		}
		n, err := strconv.Atoi(string(line))
		if err != nil || n <= last {
			t.Fatalf("line %d is followed by %.100q", last, line)
		}
		output, last, line = output+int64(len(line))+1, n, line[:0]
	}
	return output, last
}

// outputOf is what `seq count` writes.
func outputOf(count int) int64 {
	var b bytes.Buffer
	for i := 1; i <= count; i++ {
		b.WriteString(strconv.Itoa(i))
		b.WriteByte('\n')
	}
	return int64(b.Len())
}

// Each byte is in the log or counted, once, whenever the worker dies.
func TestKilledWorkerCountsWhatABoundedLogDrops(t *testing.T) {
	b := newBench(t)
	const count = 1_000_000
	c := container{script: "while ! [ -e /shared/go ]; do sleep 0.01; done; seq " + strconv.Itoa(count) + "; exit 7"}
	c.Bounds = keeper.LogBounds{Rate: 100_000}
	req := b.run("writer", c)
	if err := os.WriteFile(filepath.Join(b.shared(), "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		<-time.After(time.Duration(rand.IntN(12_000)) * time.Microsecond) // a random moment
		b.kill(b.worker)
	}
	if e := b.exit("writer"); e.Code != 7 {
		t.Errorf("exit %+v, want code 7", e)
	}
	logged, last := increasing(t, req.LogPath)
	dropped := b.stateOf("writer").LogDropped
	if logged+dropped != outputOf(count) || dropped == 0 {
		t.Errorf("%d bytes are logged and %d dropped of %d; the last line is %d", logged, dropped, outputOf(count), last)
	}
}

// A full disk holds the container up for as long as the bound says, and the log goes on when there is room.
func TestFullDiskStopsNoContainer(t *testing.T) {
	b := newBench(t)
	disk := filepath.Join(b.dir, "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("disk", disk, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	// What it frees has room for all that is on its way when the container goes on, which is up to 128 KiB of output and
	// seven times as much in the log: nobody knows how far the worker is then.
	filler := filepath.Join(disk, "filler")
	if err := os.WriteFile(filler, make([]byte, 4<<20-128<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	const count = 300_000
	c := container{script: "seq 200000; touch /shared/written; while ! [ -e /shared/go ]; do sleep 0.01; done; seq 200001 " + strconv.Itoa(count) + " | tail -n 100; exit 7"}
	c.Bounds = keeper.LogBounds{FullWait: 300 * time.Millisecond}
	c.LogPath = filepath.Join(disk, "log")
	b.run("writer", c)
	b.eventually("the container writes on", func() bool {
		_, err := os.Stat(filepath.Join(b.shared(), "written"))
		return err == nil
	})
	b.kill(b.worker) // one that finds a full disk
	b.eventually("the worker is back", func() bool { return b.stateOf("writer") != nil })
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.shared(), "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if e := b.exit("writer"); e.Code != 7 {
		t.Errorf("exit %+v, want code 7", e)
	}
	logged, last := increasing(t, c.LogPath)
	dropped := b.stateOf("writer").LogDropped
	if total := outputOf(200_000) + 100*7; logged+dropped != total || dropped == 0 || last != count {
		t.Errorf("%d bytes are logged and %d dropped of %d; the last line is %d", logged, dropped, total, last)
	}
}
