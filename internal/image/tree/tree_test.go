package tree_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"gantry/internal/image/tree"
)

// record makes a directory and its record.
func record(t testing.TB) (path, dir string) {
	t.Helper()
	top := t.TempDir()
	path, dir = filepath.Join(top, "record"), filepath.Join(top, "dir")
	w, err := tree.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "a/b"), 0o700), os.WriteFile(filepath.Join(dir, "a/f"), []byte("content"), 0o640),
		os.Symlink("f", filepath.Join(dir, "a-link")), os.WriteFile(filepath.Join(dir, "a/b/sparse"), make([]byte, 5000), 0o600)); err != nil {
		t.Fatal(err)
	}
	inode := func(name string) uint64 {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	w.Raw([]byte("head|"))
	w.Content([]byte("con"))
	w.Content([]byte("tent"))
	w.File(inode("a/f"), false)
	w.Raw([]byte("|middle|stored form"))
	w.Content(make([]byte, 5000))
	w.File(inode("a/b/sparse"), true)
	w.Raw([]byte("|end"))
	if err := w.Finish(dir, true); err != nil {
		t.Fatal(err)
	}
	return path, dir
}

func TestTarIsPutTogetherAgain(t *testing.T) {
	path, dir := record(t)
	var out bytes.Buffer
	if err := tree.WriteTar(t.Context(), path, dir, &out); err != nil {
		t.Fatal(err)
	}
	const want = "head|content|middle|stored form|end"
	if out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	if n, err := tree.TarSize(path); n != int64(len(want)) || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	if err := os.Truncate(filepath.Join(dir, "a/f"), 2); err != nil {
		t.Fatal(err)
	}
	if err := tree.WriteTar(t.Context(), path, dir, &out); !errdefs.IsDataLoss(err) {
		t.Errorf("of a truncated file: %v", err)
	}
}

func TestRecordHasWhatScanSees(t *testing.T) {
	path, dir := record(t)
	var got, want []tree.Entry
	if err := tree.Read(path, tree.Visitor{Entry: func(e *tree.Entry) error { got = append(got, *e); return nil }}); err != nil {
		t.Fatal(err)
	}
	for e, err := range tree.Scan(dir, true) {
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, e)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(tree.Entry{}), cmpopts.IgnoreFields(tree.Entry{}, "Content")); diff != "" {
		t.Error(diff)
	}
	// a directory's content comes before the sibling whose name only begins like it
	var paths []string
	for _, e := range got {
		paths = append(paths, e.Path)
	}
	if diff := cmp.Diff([]string{".", "a", "a/b", "a/b/sparse", "a/f", "a-link"}, paths); diff != "" {
		t.Error(diff)
	}
	if c, err := tree.Compare(t.Context(), path, dir); err != nil || len(c.Differences) > 0 {
		t.Errorf("%v, %v", c, err)
	}
}

func TestDerivedRecordHasTheChange(t *testing.T) {
	path, dir := record(t)
	derived := path + "2"
	if err := tree.Derive(path, derived, func(e *tree.Entry) {
		if e.Path == "a" {
			e.UID = 7
		}
	}); err != nil {
		t.Fatal(err)
	}
	c, err := tree.Compare(t.Context(), derived, dir)
	if err != nil || len(c.Differences) != 1 || c.Differences[0].Kind != tree.Owner || c.Differences[0].Path != "a" {
		t.Errorf("%v, %v", c, err)
	}
}

func TestDamagedRecordIsNoticedOrSaysTheSame(t *testing.T) {
	path, dir := record(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	same := 0 // a frame's header has bits that mean nothing
	for i := range whole {
		broken := bytes.Clone(whole)
		broken[i] ^= 0x10
		if err := os.WriteFile(path, broken, 0o600); err != nil {
			t.Fatal(err)
		}
		switch c, err := tree.Compare(t.Context(), path, dir); {
		case errdefs.IsDataLoss(err):
		case err == nil && len(c.Differences) == 0 && same < 4:
			same++
		default:
			t.Fatalf("byte %d: %v, %v", i, c, err)
		}
		if err := tree.Decode(bytes.NewReader(whole[:i]), tree.Visitor{}); !errdefs.IsDataLoss(err) {
			t.Fatalf("cut at byte %d: %v", i, err)
		}
	}
}

func TestCompareEndsWithItsContext(t *testing.T) {
	path, dir := record(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tree.Compare(ctx, path, dir); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	path, _ := record(f)
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		err := tree.Decode(bytes.NewReader(data), tree.Visitor{
			Raw:     func([]byte) error { return nil },
			Content: func(tree.Sum) error { return nil },
			Entry:   func(*tree.Entry) error { return nil },
		})
		if err != nil && !errdefs.IsDataLoss(err) {
			t.Errorf("%v is no loss of data", err)
		}
	})
}
