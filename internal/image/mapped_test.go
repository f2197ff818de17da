package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"gantry/internal/idmap"
	"gantry/internal/image"
	"gantry/internal/labimage"
	"gantry/internal/netns"
	"gantry/internal/pod"
)

func userns(t *testing.T, length uint32) netns.Spec {
	t.Helper()
	ids := []pod.IDMapping{{HostID: 300000, Length: length}}
	s := netns.Spec{User: filepath.Join(t.TempDir(), "user"), UIDs: ids, GIDs: ids}
	if err := netns.Create(s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netns.Remove(s) })
	return s
}

func ownerOf(t *testing.T, path string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid
}

func owned(e labimage.Entry, id int) labimage.Entry {
	e.Uid, e.Gid = id, id
	return e
}

func TestPrepareMappedShiftsOwnersAndSharesLayers(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s := open(t, image.Options{})
	id := pull(t, s, push(t, r, "app:1", build(t, v1.Config{},
		[]labimage.Entry{labimage.File("root", 0o644, "r"), labimage.File("both", 0o644, "low")},
		[]labimage.Entry{owned(labimage.File("user", 0o644, "u"), 1000), labimage.File("both", 0o644, "high")})))
	plain := prepare(t, s, "plain", id)
	mapped, err := s.Prepare(t.Context(), image.Mount{Key: "mapped", Image: id, IDs: userns(t, 65536)})
	if err != nil {
		t.Fatal(err)
	}
	for name, uid := range map[string]uint32{"root": 0, "user": 1000, ".": 0} {
		if got := ownerOf(t, filepath.Join(plain, name)); got != uid {
			t.Errorf("%s without a user namespace belongs to %d, want %d", name, got, uid)
		}
		if got := ownerOf(t, filepath.Join(mapped, name)); got != 300000+uid {
			t.Errorf("%s in a user namespace belongs to %d, want %d", name, got, 300000+uid)
		}
	}
	if got := read(t, mapped, "both"); got != "high" {
		t.Errorf("the uppermost layer does not win: %q", got)
	}
	// A copy made by a write keeps its owner, and the layer its content.
	if err := os.WriteFile(filepath.Join(mapped, "user"), []byte("changed"), 0); err != nil {
		t.Fatal(err)
	}
	if got := ownerOf(t, filepath.Join(mapped, "user")); got != 301000 {
		t.Errorf("a file that was written to belongs to %d", got)
	}
	if got := read(t, plain, "user"); got != "u" {
		t.Errorf("another container sees %q", got)
	}
	for _, key := range []string{"mapped", "plain"} {
		if err := s.Release(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
}

func TestPrepareMappedRefusesOwnersWithoutAnID(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s := open(t, image.Options{})
	root := owned(labimage.Dir(".", 0o755), 70000)
	id := pull(t, s, push(t, r, "app:1", build(t, v1.Config{}, []labimage.Entry{root, labimage.File("f", 0o644, "")})))
	if _, err := s.Prepare(t.Context(), image.Mount{Key: "c", Image: id, IDs: userns(t, 65536)}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("PrepareMapped: %v", err)
	}
	if keys, err := s.Prepared(t.Context()); len(keys) > 0 || err != nil {
		t.Errorf("left behind %v, %v", keys, err)
	}
}

func TestCrashWithTheLayersInViewLosesNoLayer(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	dir := t.TempDir()
	s := open(t, image.Options{Root: dir})
	id := pull(t, s, push(t, r, "app:1", build(t, v1.Config{}, []labimage.Entry{labimage.File("f", 0o644, "kept")})))
	prepare(t, s, "c", id)
	view := filepath.Join(dir, "containers", "c", "view")
	if err := errors.Join(os.Mkdir(view, 0o755), idmap.Mount(filepath.Join(dir, "layers"), view, userns(t, 65536).User)); err != nil {
		t.Fatal(err)
	}
	if err := s.Release(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, prepare(t, s, "again", id), "f"); got != "kept" {
		t.Errorf("the layer holds %q", got)
	}
}
