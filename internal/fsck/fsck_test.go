package fsck_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/fsck"
	"gantry/internal/lab"
	"gantry/internal/pod"
)

func TestMain(m *testing.M) { lab.Main(m) }

type node struct {
	fsck.Options
	t *testing.T
}

func (n *node) file(content string, path ...string) string {
	n.t.Helper()
	p := filepath.Join(path...)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
		n.t.Fatal(err)
	}
	return p
}

func (n *node) dir(path ...string) string {
	n.t.Helper()
	p := filepath.Join(path...)
	if err := os.MkdirAll(p, 0o700); err != nil {
		n.t.Fatal(err)
	}
	return p
}

// traces makes what a pod with this key has on a node and returns the paths, all of them.
func (n *node) traces(key, layer, uid string) []string {
	n.t.Helper()
	mounted := n.dir(n.State, "pods", key, "shm")
	if err := unix.Mount("shm", mounted, "tmpfs", 0, ""); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = unix.Unmount(mounted, unix.MNT_DETACH) })
	cg := n.dir(n.Cgroups, "gantry", key)
	return []string{
		mounted, n.file("", n.NetNSDir, "gantry-"+key), n.file("boot\n"+key+"\neth0\n", n.State, "bridge", "net", "leases", "10.0.0."+uid),
		cg, n.dir(n.Root, "images", "containers", key), n.dir(n.State, "native", "containers", key),
		n.dir(n.State, "native", "sandboxes", key), filepath.Join(n.State, "pods", key),
		n.dir(n.Root, "images", "layers", layer), filepath.Dir(filepath.Dir(n.file("", n.LogDirs[0], "default_web_"+uid, "c", "0.log"))),
	}
}

// cgroups is a directory of real cgroups that goes with the test.
func cgroups(t *testing.T) string {
	t.Helper()
	private := lab.Cgroup(t)
	for _, mount := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if _, err := os.Stat(filepath.Join(mount, "cgroup.procs")); err == nil {
			dir := filepath.Join(mount, private)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { removeCgroups(dir) })
			return dir
		}
	}
	t.Fatal("no cgroups are mounted")
	return ""
}

func removeCgroups(dir string) {
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		if e.IsDir() {
			removeCgroups(filepath.Join(dir, e.Name()))
		}
	}
	_ = unix.Rmdir(dir)
}

func newNode(t *testing.T) *node {
	top := t.TempDir()
	n := &node{t: t, Options: fsck.Options{
		Root: filepath.Join(top, "root"), State: filepath.Join(top, "state"), NetNSDir: filepath.Join(top, "netns"),
		Cgroups: cgroups(t), LogDirs: []string{filepath.Join(top, "logs")},
	}}
	n.dir(n.Root, "journal", "pods")
	n.file("", n.Root, "images", "lock")
	return n
}

func run(t *testing.T, o fsck.Options) (paths []string, all []fsck.Orphan) {
	t.Helper()
	all, err := fsck.Run(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range all {
		paths = append(paths, x.Path)
		if x.Was == "" {
			t.Errorf("%s: it is not said what it was", x.Path)
		}
	}
	slices.Sort(paths)
	return paths, all
}

func TestWhatNoRecordNamesIsFoundAndRemoved(t *testing.T) {
	n := newNode(t)
	known, gone := pod.NewKey(), pod.NewKey()
	record, err := json.Marshal(map[string]any{"pod": &pod.Sandbox{Spec: pod.SandboxSpec{Key: known, Metadata: pod.Metadata{UID: "1"}}}})
	if err != nil {
		t.Fatal(err)
	}
	n.file(string(record), n.Root, "journal", "pods", string(known)+".json")
	n.file(`{"layers":[{"name":"0123456789abcdef"}]}`, n.Root, "images", "images", "x.json")
	kept := n.traces(string(known), "0123456789abcdef", "1")
	want := n.traces(string(gone), "fedcba9876543210", "2")
	// not ours: another runtime's cgroup, and what carries no key
	kept = append(kept, n.dir(n.Cgroups, "docker", string(gone)), n.dir(n.State, "pods", "notes"), n.file("", n.NetNSDir, "cni-1"))
	slices.Sort(want)

	if found, _ := run(t, n.Options); !slices.Equal(found, want) {
		t.Errorf("found  %q\nwanted %q", found, want)
	}
	n.Repair = true
	found, all := run(t, n.Options)
	if !slices.Equal(found, want) {
		t.Errorf("with repair found  %q", found)
	}
	for _, x := range all {
		if !x.Removed || x.Error != "" {
			t.Errorf("%s %s: removed %t, %s", x.Kind, x.Path, x.Removed, x.Error)
		}
	}
	for _, p := range want {
		if _, err := os.Lstat(p); err == nil {
			t.Errorf("%s is still there", p)
		}
	}
	for _, p := range kept {
		if _, err := os.Lstat(p); err != nil {
			t.Errorf("what is in use was removed: %v", err)
		}
	}
	if found, _ := run(t, n.Options); len(found) > 0 {
		t.Errorf("a second time found %q", found)
	}
}

func TestLayersOfARunningServerAreItsOwn(t *testing.T) {
	n := newNode(t)
	layer := n.dir(n.Root, "images", "layers", "fedcba9876543210")
	lock, err := os.Open(filepath.Join(n.Root, "images", "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	n.Repair = true
	if _, all := run(t, n.Options); len(all) != 1 || all[0].Removed || all[0].Error == "" {
		t.Errorf("%+v", all)
	}
	if _, err := os.Stat(layer); err != nil {
		t.Error(err)
	}
}

func TestWhatMayBeAnotherServersIsLeftUnlessThereIsNone(t *testing.T) {
	n := newNode(t)
	other := string(pod.NewKey())
	want := []string{n.dir(n.Cgroups, "gantry", other), n.file("", n.NetNSDir, "gantry-"+other)}
	if found, _ := run(t, n.Options); len(found) > 0 {
		t.Errorf("found %q", found)
	}
	n.Alone = true
	slices.Sort(want)
	if found, _ := run(t, n.Options); !slices.Equal(found, want) {
		t.Errorf("found %q, want %q", found, want)
	}
}

func TestFilesOfWhatRunsAreLeft(t *testing.T) {
	n := newNode(t)
	key := string(pod.NewKey())
	paths := n.traces(key, "fedcba9876543210", "1")
	sleep := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = sleep.Process.Kill()
		_ = sleep.Wait()
	}()
	cg := filepath.Join(n.Cgroups, "gantry", key)
	if err := os.WriteFile(filepath.Join(cg, "cgroup.procs"), []byte(strconv.Itoa(sleep.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	n.Repair = true
	_, all := run(t, n.Options)
	for _, x := range all {
		if x.Kind == fsck.Cgroup && x.Error == "" || x.Kind != fsck.Layer && x.Kind != fsck.Logs && x.Removed {
			t.Errorf("%+v", x)
		}
	}
	if _, err := os.Stat(filepath.Join(n.Root, "images", "containers", key)); err != nil {
		t.Errorf("of %q: %v", paths, err)
	}
}

func TestFreshLogsAndLayersAreLeft(t *testing.T) {
	n := newNode(t)
	n.traces(string(pod.NewKey()), "fedcba9876543210", "2")
	n.Age = time.Hour
	_, all := run(t, n.Options)
	for _, x := range all {
		if x.Kind == fsck.Logs || x.Kind == fsck.Layer {
			t.Errorf("%s %s has only just come", x.Kind, x.Path)
		}
	}
}

func TestWithoutAJournalNothingIsAnOrphan(t *testing.T) {
	if _, err := fsck.Run(fsck.Options{Root: t.TempDir()}); err == nil {
		t.Error("no error")
	}
}
