package worker

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/crilog"
	"gantry/internal/keeper/wire"
)

// A state directory that is full when a feed begins keeps no container of dockerd's waiting for somebody to read its output.
func TestFeedMovesWhereItCannotBeRecorded(t *testing.T) {
	w, _ := attached(t, saved{Create: wire.Create{Key: "c"}})
	dir := t.TempDir()
	s := w.newSink(savedSink{Log: wire.Log{Key: "d", LogPath: filepath.Join(dir, "log")}})
	if err := os.MkdirAll(filepath.Join(s.dir, sinkRecord), 0o700); err != nil { // no file takes a directory's place
		t.Fatal(err)
	}
	if err := s.attach(false); err != nil {
		t.Fatal(err)
	}
	f := feed{N: 1, File: filepath.Join(dir, "fifo")}
	if err := unix.Mkfifo(f.File, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := openFeed(f.File)
	if err != nil {
		t.Fatal(err)
	}
	if err = s.keep(map[string]int{f.fifo(): fd}); err != nil {
		t.Fatal(err)
	}
	s.Feeds = []feed{f}
	s.turn.Lock()
	defer s.turn.Unlock()
	if err = s.begin(); err == nil {
		t.Error("a record took a directory's place")
	}
	s.mu.Lock()
	grown := s.grown
	s.mu.Unlock()
	if _, err = unix.Write(fd, []byte(framesOf(crilog.Stdout, "a line")[0])); err != nil {
		t.Fatal(err)
	}
	select {
	case <-grown:
	case <-time.After(time.Minute):
		t.Error("nobody reads what dockerd writes")
	}
	s.current.close()
	s.pumps.Wait()
}
