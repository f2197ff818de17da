package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// unified is a v2 hierarchy with n cgroups /p0, /p1 … of two files each.
func unified(t *testing.T, n int) (f *FS, root string) {
	t.Helper()
	root = t.TempDir()
	write := func(name, content string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("cgroup.controllers", "memory pids\n")
	for i := range n {
		write(fmt.Sprintf("p%d/memory.current", i), "4096\n")
		write(fmt.Sprintf("p%d/pids.current", i), "1\n")
	}
	f, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.kept.closeUnused(time.Now().Add(time.Hour)) })
	return f, root
}

func read(t *testing.T, f *FS, cgroup string) (processes uint64) {
	t.Helper()
	s, err := f.Read(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	return s.Processes
}

// descriptors counts those of this process for files below dir.
func descriptors(t *testing.T, dir string) (n int) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		to, err := os.Readlink(l)
		if inside, _ := filepath.Match(dir+"/*/*", to); err == nil && inside {
			n++
		}
	}
	return n
}

func TestFilesAreKeptUntilNobodyReadsThem(t *testing.T) {
	f, root := unified(t, 2)
	for range 3 {
		read(t, f, "/p0")
		read(t, f, "/p1")
	}
	if n := descriptors(t, root); n != 4 || f.kept.open != 4 {
		t.Errorf("%d descriptors are open, %d counted, want 4", n, f.kept.open)
	}
	f.Forget("/p1")
	if n := descriptors(t, root); n != 2 {
		t.Errorf("%d descriptors are open after one cgroup was forgotten, want 2", n)
	}
	f.kept.closeUnused(time.Now())
	if n := descriptors(t, root); n != 2 {
		t.Errorf("%d descriptors are open that were used just now, want 2", n)
	}
	f.kept.closeUnused(time.Now().Add(keepFor))
	if n := descriptors(t, root); n != 0 || f.kept.open != 0 || f.kept.sweep != nil {
		t.Errorf("%d descriptors are open that nobody uses", n)
	}
	if n := read(t, f, "/p0"); n != 1 {
		t.Errorf("%d processes when read again", n)
	}
}

func TestKeptFilesAreBounded(t *testing.T) {
	f, root := unified(t, 20)
	f.kept.most = 9
	for range 2 {
		for i := range 20 {
			if n := read(t, f, fmt.Sprintf("/p%d", i)); n != 1 {
				t.Errorf("%d processes in cgroup %d", n, i)
			}
		}
	}
	if n := descriptors(t, root); n != 8 {
		t.Errorf("%d descriptors are open, want four cgroups' two", n)
	}
}

func TestAFileThatAppearsIsFound(t *testing.T) {
	f, root := unified(t, 1)
	read(t, f, "/p0")
	if err := os.WriteFile(filepath.Join(root, "p0", "memory.max"), []byte("8192\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.kept.files["/p0"].opened = time.Now().Add(-2 * keepFor)
	s, err := f.Read("/p0")
	if err != nil || s.MemoryLimit != 8192 {
		t.Errorf("a limit of %+v, %v", s, err)
	}
}
