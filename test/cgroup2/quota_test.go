package cgroup2_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/image"
	"gantry/internal/labimage"
	"gantry/internal/pod"
	"gantry/internal/projquota"
)

// formats are how the file systems are made and mounted that have project quotas.
var formats = []struct {
	name   string
	mkfs   []string
	option string
}{
	{"xfs", []string{"mkfs.xfs", "-q"}, "prjquota"},
	{"ext4", []string{"mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota"}, "prjquota"},
}

// disk makes a file system in a file and mounts it until the test ends.
func disk(t *testing.T, option string, mkfs ...string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "disk")
	run(t, "truncate", "-s", "400M", file)
	run(t, mkfs[0], append(mkfs[1:], file)...)
	at := filepath.Join(dir, "mnt")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-o", "loop,"+option, file, at)
	t.Cleanup(func() { run(t, "umount", "-l", at) })
	return at
}

func openStore(t *testing.T, o image.Options) *image.Store {
	t.Helper()
	s, err := image.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func pullSmall(t *testing.T, s *image.Store) string {
	t.Helper()
	r := labimage.Registry(t, labimage.Config{})
	img, err := labimage.Build(v1.Config{}, []labimage.Entry{labimage.Dir("d", 0o755), labimage.File("d/f", 0o644, "f")})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := r.Push("app:1", img)
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.Pull(t.Context(), &pod.Pull{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func prepare(t *testing.T, s *image.Store, key, id string) string {
	t.Helper()
	root, err := s.Prepare(t.Context(), image.Mount{Key: key, Image: id})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Release(context.Background(), key) })
	return root
}

func write(t *testing.T, path string, megabytes int) {
	t.Helper()
	if err := os.WriteFile(path, make([]byte, megabytes<<20), 0o600); err != nil {
		t.Fatal(err)
	}
}

// walkTime bounds the wait for what the disk does behind the answers.
const walkTime = 3 * time.Minute

// occupies waits until a writable layer occupies no less than that, and not much more: xfs counts what was
// removed until it has worked it off, and a walk takes its time.
func occupies(t *testing.T, s *image.Store, key string, megabytes, files uint64) {
	t.Helper()
	var u *pod.Usage
	for end := time.Now().Add(walkTime); time.Now().Before(end); <-time.After(50 * time.Millisecond) {
		var err error
		if u, err = s.LayerUsage(key); err != nil {
			t.Fatalf("usage of %s: %v", key, err)
		}
		// the root directory and what overlayfs works in are there before anything is written
		if u != nil && u.Bytes >= megabytes<<20 && u.Bytes <= megabytes<<20+1<<19 && u.Inodes >= files+1 && u.Inodes <= files+6 {
			return
		}
	}
	t.Errorf("%d MiB in %d files are %+v", megabytes, files, u)
}

// walked is what the first walk of a writable layer says, which may come behind the answer to whoever asks.
func walked(t *testing.T, s *image.Store, key string) *pod.Usage {
	t.Helper()
	for end := time.Now().Add(walkTime); time.Now().Before(end); <-time.After(50 * time.Millisecond) {
		if u, err := s.LayerUsage(key); err != nil || u != nil {
			if err != nil {
				t.Errorf("usage of %s: %v", key, err)
			}
			return u
		}
	}
	return nil
}

func TestProjectQuotasCountWritableLayers(t *testing.T) {
	ids := projquota.Range{First: 7000, Last: 7002}
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			at := disk(t, f.option, f.mkfs...)
			root := filepath.Join(at, "images")
			var log strings.Builder
			o := image.Options{Root: root, Projects: ids, UsageAge: time.Hour, Log: slog.New(slog.NewTextHandler(&log, nil))}
			s := openStore(t, o)
			if !strings.Contains(log.String(), "measured by project quotas") {
				t.Errorf("the log says %s", &log)
			}
			id := pullSmall(t, s)
			one, two := prepare(t, s, "one", id), prepare(t, s, "two", id)
			occupies(t, s, "one", 0, 0)
			write(t, filepath.Join(one, "a"), 4)
			write(t, filepath.Join(two, "a"), 1)
			occupies(t, s, "one", 4, 1)
			occupies(t, s, "two", 1, 1)
			// what overlayfs copies up and moves between its directories counts too
			for i := range 20 {
				if err := os.MkdirAll(filepath.Join(one, "d", fmt.Sprint(i)), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Rename(filepath.Join(one, "d", "0"), filepath.Join(one, "moved")); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(one, "d", "f"), 1)
			occupies(t, s, "one", 5, 23)
			if err := os.Remove(filepath.Join(one, "a")); err != nil {
				t.Fatal(err)
			}
			occupies(t, s, "one", 1, 23)

			// killed: nothing is told to the next server but by the disk
			_ = s.Close()
			s = openStore(t, o)
			occupies(t, s, "one", 1, 23)
			occupies(t, s, "two", 1, 1)
			_, layers, err := s.Usage(t.Context())
			if err != nil || layers[0].Bytes < 2<<20 || layers[0].Bytes > 3<<20 {
				t.Errorf("all writable layers are %+v, %v", layers, err)
			}

			// an id is used again, and never one under which anybody has something
			if err := s.Release(t.Context(), "one"); err != nil {
				t.Fatal(err)
			}
			foreign(t, filepath.Join(at, "foreign"), 7000)
			three := prepare(t, s, "three", id)
			write(t, filepath.Join(three, "a"), 2)
			occupies(t, s, "three", 2, 1)
			prepare(t, s, "four", id) // there is no id for it: it is walked
			if !strings.Contains(log.String(), "are all in use") {
				t.Errorf("the log says %s", &log)
			}
			if u := walked(t, s, "four"); u == nil || u.Inodes != 1 {
				t.Errorf("a layer without an id: %+v", u)
			}
		})
	}
}

// foreign makes a directory with a file in a project, as somebody else on the machine may. It waits until
// nothing else is in it.
func foreign(t *testing.T, dir string, id uint32) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fs, err := projquota.Open(dir, projquota.Range{First: id, Last: id})
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	for end := time.Now().Add(walkTime); ; <-time.After(50 * time.Millisecond) {
		if _, err = fs.Assign(dir); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "file"), 1)
}

func TestDirectoryInAProjectOfSomebodysStaysInIt(t *testing.T) {
	at := disk(t, formats[0].option, formats[0].mkfs...)
	theirs := filepath.Join(at, "theirs")
	foreign(t, theirs, 5)
	var log strings.Builder
	openStore(t, image.Options{Root: filepath.Join(theirs, "images"), Projects: projquota.Range{First: 7000, Last: 7002}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if !strings.Contains(log.String(), "in project 5") {
		t.Errorf("the log says %s", &log)
	}
}

func TestFileSystemWithoutProjectQuotas(t *testing.T) {
	for _, f := range formats {
		at := disk(t, "rw", f.mkfs[0], "-q")
		var log strings.Builder
		s := openStore(t, image.Options{Root: filepath.Join(at, "images"), Projects: projquota.Range{First: 1, Last: 9}, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if !strings.Contains(log.String(), "measured by walks") {
			t.Errorf("%s: the log says %s", f.name, &log)
		}
		root := prepare(t, s, "c", pullSmall(t, s))
		write(t, filepath.Join(root, "a"), 1)
		occupies(t, s, "c", 1, 1)
	}
}

// TestCostOfProjectQuotas says what an id costs a pod that starts.
func TestCostOfProjectQuotas(t *testing.T) {
	for _, f := range formats {
		at := disk(t, f.option, f.mkfs...)
		stores := []*image.Store{
			openStore(t, image.Options{Root: filepath.Join(at, "with"), Projects: projquota.Range{First: 7000, Last: 7999}}),
			openStore(t, image.Options{Root: filepath.Join(at, "without")}),
		}
		ids := []string{pullSmall(t, stores[0]), pullSmall(t, stores[1])}
		took := make([][]time.Duration, 3)
		for i := range 15 {
			for n, s := range stores { // in turns, because the machine has better and worse moments
				began := time.Now()
				prepare(t, s, fmt.Sprint(i), ids[n])
				took[n] = append(took[n], time.Since(began))
			}
		}
		fs, err := projquota.Open(at, projquota.Range{First: 8000, Last: 8999})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			dir := filepath.Join(at, fmt.Sprint("d", i))
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			if _, err := fs.Assign(dir); err != nil {
				t.Fatal(err)
			}
			took[2] = append(took[2], time.Since(began))
		}
		_ = fs.Close()
		for n, what := range []string{"a root file system with a project", "a root file system without", "a project alone"} {
			slices.Sort(took[n])
			t.Logf("%s: %s: median %s", f.name, what, took[n][len(took[n])/2])
		}
	}
}
