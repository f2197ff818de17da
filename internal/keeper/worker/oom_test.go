package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// events writes how many processes were killed in a cgroup of a fixture.
func events(t *testing.T, root, path string, kills int) {
	t.Helper()
	dir := filepath.Join(root, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("low 0\nhigh 0\nmax 3\noom %d\noom_kill %d\noom_group_kill 0\n", kills, kills)
	if err := os.WriteFile(filepath.Join(dir, "memory.events"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func watchOf(t *testing.T, root string) *oomWatch {
	t.Helper()
	return watchTelling(t, root, func(string) {})
}

func watchTelling(t *testing.T, root string, tell func(key string)) *oomWatch {
	t.Helper()
	o, err := newOOMWatch(root, tell)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.inotify.Close() })
	return o
}

func TestKillsInCgroupsThatAreGone(t *testing.T) {
	tests := map[string]struct {
		parent, sibling int // what they count at the end
		killed, gone    bool
		want            int
	}{
		"the cgroup is there":                       {1, 0, true, false, 1},
		"what only the parent knows":                {1, 0, true, true, 1},
		"nobody was killed":                         {0, 0, true, true, 0},
		"the sibling's is not this one's":           {1, 1, true, true, 0},
		"one of each":                               {2, 1, true, true, 1},
		"what ended by itself was not killed":       {1, 0, false, true, 0},
		"a parent that goes too knows nothing more": {-1, 0, true, true, 0},
	}
	for rule, tt := range tests {
		t.Run(rule, func(t *testing.T) {
			root := t.TempDir()
			events(t, root, "/pod", 4) // of containers that were there before
			events(t, root, "/pod/a.scope", 0)
			events(t, root, "/pod/b.scope", 0)
			o := watchOf(t, root)
			o.add("a", "/pod/a.scope")
			o.add("b", "/pod/b.scope")
			events(t, root, "/pod", 4+tt.parent)
			events(t, root, "/pod/b.scope", tt.sibling)
			var err error
			switch {
			case tt.parent < 0:
				err = os.RemoveAll(filepath.Join(root, "pod"))
			case tt.gone:
				err = os.RemoveAll(filepath.Join(root, "pod/a.scope"))
			default:
				events(t, root, "/pod/a.scope", tt.parent)
			}
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if got := o.ended("a", tt.killed); got != tt.want {
					t.Errorf("%d kills, want %d", got, tt.want)
				}
			}
			o.remove("a")
			o.remove("b")
			if len(o.known) > 0 {
				t.Errorf("parents remembered: %v", o.known)
			}
		})
	}
}

// A cgroup may go between two looks at it.
func TestKillsInACgroupThatGoes(t *testing.T) {
	root := t.TempDir()
	events(t, root, "/pod", 0)
	events(t, root, "/pod/a.scope", 0)
	o := watchOf(t, root)
	o.add("a", "/pod/a.scope")
	events(t, root, "/pod", 1)
	_ = o.inotify.Close() // else it looks, too
	file := o.file("/pod/a.scope")
	if err := errors.Join(os.Remove(file), unix.Mkfifo(file, 0o600)); err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { // whoever opens the file reads it to its end, and nobody opens it again
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString("oom_kill 1\n")
			err = errors.Join(err, os.RemoveAll(filepath.Dir(file)), f.Close())
		}
		gone <- err
	}()
	if got := o.ended("a", true); got != 1 {
		t.Errorf("%d kills, want 1", got)
	}
	if err := <-gone; err != nil {
		t.Fatal(err)
	}
}

// The kernel gives v1's notice before it kills, and may come to that late.
func TestKillLongAfterItsNotice(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "memory/pod/a")
	control := filepath.Join(dir, "memory.oom_control")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(control, []byte("oom_kill 0\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	told := make(chan string, 10)
	o := watchTelling(t, root, func(key string) { told <- key })
	o.add("a", "/pod/a")
	defer o.remove("a")
	o.mu.Lock()
	event := o.byKey["a"].event
	o.mu.Unlock()
	if _, err := event.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	<-time.After(5 * firstLook)
	if err := errors.Join(os.WriteFile(control+".new", []byte("oom_kill 1\n"), 0o600), os.Rename(control+".new", control)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-told:
	case <-time.After(time.Minute):
		t.Error("nobody was told of the kill")
	}
}
