package native_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/cgroup"
	"gantry/internal/engine/native"
	"gantry/internal/image"
	"gantry/internal/keeper"
	"gantry/internal/lab"
	"gantry/internal/labimage"
	"gantry/internal/netns"
	"gantry/internal/ociruntime"
	"gantry/internal/pod"
)

func TestMain(m *testing.M) { lab.Main(m) }

// patience is how long anything in these tests may take.
const patience = 3 * time.Minute

// keeperBinary builds gantry-keeper, static, once, in the lab's own /run.
var keeperBinary = sync.OnceValues(func() (string, error) {
	const path = "/run/bin/gantry-keeper"
	cmd := exec.CommandContext(context.Background(), "go", "build", "-o", path, "gantry/cmd/gantry-keeper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	return path, cmd.Run()
})

// station is a native engine with everything behind it.
type station struct {
	*native.Engine
	opts   native.Options
	image  *pod.Image
	keeper *keeper.Client
	parent string // cgroup
	dir    string
}

func newStation(t testing.TB, runtime string) *station {
	t.Helper()
	binary, err := keeperBinary()
	if err != nil {
		t.Fatalf("build gantry-keeper: %v", err)
	}
	path, err := ociruntime.Find(runtime)
	if err != nil {
		t.Fatal(err)
	}
	s := &station{dir: t.TempDir(), parent: lab.Cgroup(t)}
	store, img := busybox(t, filepath.Join(s.dir, "images"))
	s.image = img
	s.keeper = startKeeper(t, filepath.Join(s.dir, "keeper"), binary)
	s.opts = native.Options{
		Keeper: s.keeper, Rootfs: store,
		Runtimes:       map[string]ociruntime.Runtime{runtime: {Path: path}, "broken": {Path: "/no/such/runtime"}},
		DefaultRuntime: runtime,
		StateDir:       filepath.Join(s.dir, "native"),
		NetNSDir:       filepath.Join(s.dir, "netns"),
		CgroupDriver:   cgroup.Cgroupfs,
		PauseBinary:    binary,
	}
	if s.Engine, err = native.New(s.opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(s.opts.NetNSDir, unix.MNT_DETACH) })
	return s
}

func startKeeper(t testing.TB, dir, binary string) *keeper.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	k, err := keeper.Connect(ctx, keeper.Options{StateDir: dir, Binary: binary})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = k.Close()
		// The keeper outlives its clients by design; here it ends with the lab's PID namespace.
	})
	return k
}

func busybox(t testing.TB, root string) (*image.Store, *pod.Image) {
	t.Helper()
	registry := labimage.Registry(t, labimage.Config{})
	img, err := labimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := registry.Push("busybox:latest", img)
	if err != nil {
		t.Fatal(err)
	}
	store, err := image.Open(image.Options{Root: root, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	id, err := store.Pull(t.Context(), &pod.Pull{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	got, err := store.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return store, got
}

// leftovers lists what the engine may not leave behind.
func (s *station) leftovers(t *testing.T) []string {
	t.Helper()
	var left []string
	for _, pattern := range []string{"native/sandboxes/*", "native/containers/*", "netns/*", "images/containers/*"} {
		found, _ := filepath.Glob(filepath.Join(s.dir, pattern))
		for _, f := range found {
			if netns.IsPinned(f) {
				f += " (pinned)"
			}
			left = append(left, f)
		}
	}
	cgroups, _ := filepath.Glob("/sys/fs/cgroup/*" + s.parent + "/*")
	for _, c := range cgroups {
		if st, err := os.Stat(c); err == nil && st.IsDir() {
			left = append(left, c)
		}
	}
	return left
}
