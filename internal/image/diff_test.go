package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"gantry/internal/image"
	"gantry/internal/labimage"
)

func TestContainerBeginsWithTheChangesOfAnother(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s := open(t, image.Options{})
	id := pull(t, s, push(t, r, "app:1", build(t, v1.Config{}, []labimage.Entry{
		labimage.Dir("etc", 0o755), labimage.File("etc/kept", 0o644, "kept"), labimage.File("etc/gone", 0o644, "gone"),
		labimage.Dir("srv", 0o750), labimage.File("srv/old", 0o644, "old"), labimage.File("srv/changed", 0o644, "before"),
		labimage.Dir("again", 0o755), labimage.File("again/hidden", 0o644, "x"), labimage.File("again/same", 0o644, "x"),
	})))
	root := prepare(t, s, "a", id)
	for _, act := range []error{
		os.Remove(filepath.Join(root, "etc/gone")),
		os.WriteFile(filepath.Join(root, "srv/changed"), []byte("after"), 0o600),
		os.WriteFile(filepath.Join(root, "made"), []byte("made and gone"), 0o600), os.Remove(filepath.Join(root, "made")),
		os.Symlink("changed", filepath.Join(root, "srv/link")), os.Link(filepath.Join(root, "srv/changed"), filepath.Join(root, "srv/hard")),
		unix.Mkfifo(filepath.Join(root, "srv/fifo"), 0o640), os.Lchown(filepath.Join(root, "srv/link"), 7, 8),
		unix.Setxattr(filepath.Join(root, "srv/changed"), "user.note", []byte("kept"), 0),
		os.RemoveAll(filepath.Join(root, "again")), os.Mkdir(filepath.Join(root, "again"), 0o711),
		os.WriteFile(filepath.Join(root, "again/same"), []byte("new"), 0o600),
	} {
		if act != nil {
			t.Fatal(act)
		}
	}
	var diff bytes.Buffer
	deleted, err := s.Diff(t.Context(), "a", &diff)
	if err != nil || !slices.Equal(deleted, []string{"again/hidden", "etc/gone"}) {
		t.Fatalf("deleted are %v, %v", deleted, err)
	}
	copied, err := s.PrepareFrom(t.Context(), image.Mount{Key: "b", Image: id}, &diff, deleted)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Release(context.Background(), "b") })
	if got, want := treeOf(t, copied), treeOf(t, root); got != want {
		t.Errorf("the copy is\n%s, want\n%s", got, want)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(copied, "srv/link"), &st); err != nil || st.Uid != 7 || st.Gid != 8 {
		t.Errorf("the link belongs to %d:%d, %v", st.Uid, st.Gid, err)
	}
	note := make([]byte, 16)
	if n, err := unix.Getxattr(filepath.Join(copied, "srv/changed"), "user.note", note); err != nil || string(note[:n]) != "kept" {
		t.Errorf("the attribute is %q, %v", note[:max(n, 0)], err)
	}
	if _, err := s.Diff(t.Context(), "nobody", &diff); !errdefs.IsNotFound(err) {
		t.Errorf("changes of nobody: %v, want ErrNotFound", err)
	}
}

// treeOf has a line for everything below root.
func treeOf(t *testing.T, root string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		line := rel + " " + info.Mode().String()
		if info.Mode().IsRegular() {
			line += " " + read(t, path)
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// Only what was changed, as other runtimes write it: the directories on the way are the image's.
func TestDiffOfOthersAndItsDirectories(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s := open(t, image.Options{})
	id := pull(t, s, push(t, r, "app:1", build(t, v1.Config{}, []labimage.Entry{labimage.Dir("srv", 0o2750), labimage.File("srv/old", 0o644, "old")})))
	root, err := s.PrepareFrom(t.Context(), image.Mount{Key: "a", Image: id}, bytes.NewReader(tarOf(t, labimage.File("srv/new", 0o644, "new"))), []string{"../../../etc/hostname", "/srv/old"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Release(context.Background(), "a") })
	st, err := os.Stat(filepath.Join(root, "srv"))
	if err != nil || st.Mode() != os.ModeDir|os.ModeSetgid|0o750 {
		t.Errorf("srv is %v, %v; want what the image says", st.Mode(), err)
	}
	if _, err := os.Stat(filepath.Join(root, "srv/old")); !os.IsNotExist(err) {
		t.Errorf("what was deleted is there: %v", err)
	}
	if _, err := os.Stat("/etc/hostname"); err != nil {
		t.Errorf("a deleted name led out of the root file system: %v", err)
	}
}

func TestViewOfAnImage(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s := open(t, image.Options{})
	id := pull(t, s, push(t, r, "app:1", build(t, v1.Config{}, []labimage.Entry{labimage.File("a", 0o644, "content")})))
	var seen string
	err := s.View(t.Context(), id, func(dir string) error {
		seen = dir
		if got := read(t, filepath.Join(dir, "a")); got != "content" {
			t.Errorf("the file says %q", got)
		}
		// Whoever removes what no container has leaves it alone.
		if keys, err := s.Prepared(t.Context()); err != nil || len(keys) > 0 {
			t.Errorf("prepared are %v, %v", keys, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(seen); !os.IsNotExist(err) {
		t.Errorf("the view is still there: %v", err)
	}
	if keys, err := s.Prepared(t.Context()); err != nil || len(keys) > 0 {
		t.Errorf("prepared are %v, %v", keys, err)
	}
}

func tarOf(t *testing.T, entries ...labimage.Entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := range entries {
		entries[i].Size = int64(len(entries[i].Content))
		if err := w.WriteHeader(&entries[i].Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(entries[i].Content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
