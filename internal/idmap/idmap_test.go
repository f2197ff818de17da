package idmap_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/idmap"
	"gantry/internal/lab"
	"gantry/internal/netns"
	"gantry/internal/pod"
)

func TestMain(m *testing.M) { lab.Main(m) }

func userns(t *testing.T) string {
	t.Helper()
	ids := []pod.IDMapping{{HostID: 200000, Length: 65536}}
	s := netns.Spec{User: filepath.Join(t.TempDir(), "user"), UIDs: ids, GIDs: ids}
	if err := netns.Create(s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netns.Remove(s) })
	return s.User
}

func owner(t *testing.T, path string) int {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return int(st.Uid)
}

func TestMountMapsOwners(t *testing.T) {
	dir := t.TempDir()
	source, target := filepath.Join(dir, "source"), filepath.Join(dir, "target")
	below := filepath.Join(source, "below")
	for _, d := range []string{source, target, below} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("tmpfs", below, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(below, unix.MNT_DETACH) })
	for name, uid := range map[string]int{"root": 0, "user": 1000, "below/user": 7} {
		path := filepath.Join(source, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	if err := idmap.Mount(source, target, userns(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	for name, uid := range map[string]int{"root": 200000, "user": 201000, "below/user": 200007} {
		if got := owner(t, filepath.Join(target, name)); got != uid {
			t.Errorf("%s belongs to %d, want %d", name, got, uid)
		}
	}
	if got := owner(t, filepath.Join(source, "user")); got != 1000 {
		t.Errorf("the source's owner became %d", got)
	}
}

func TestMountOfWhatCannotBeMappedIsNotImplemented(t *testing.T) {
	target := t.TempDir()
	if err := idmap.Mount("/sys", target, userns(t)); !errdefs.IsNotImplemented(err) {
		t.Errorf("sysfs: %v", err)
	}
	if err := unix.Unmount(target, 0); err == nil {
		t.Error("something is mounted")
	}
}
