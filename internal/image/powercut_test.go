package image_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"gantry/internal/image"
	"gantry/internal/labimage"
	"gantry/internal/pod"
)

// The store lies on an ext4 in a file, and the file on an XFS that copies it in one step (FICLONE):
// such a copy is what a disk without a cache of its own would hold had the power gone at that moment,
// with everything that the kernel had not yet written missing.

const (
	cutsVariable   = "GANTRY_CUTS" // number of cuts; few if it is not set
	pullerVariable = "GANTRY_IMAGE_PULLER"
	fewCuts        = 4
)

// TestPuller is the process that pulls and removes while the power goes. It ends with its parent.
func TestPuller(t *testing.T) {
	args := strings.Fields(os.Getenv(pullerVariable))
	if len(args) < 2 {
		return
	}
	root, refs := args[0], args[1:]
	s, err := image.Open(image.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	for {
		for _, ref := range refs {
			if _, err := s.Pull(t.Context(), &pod.Pull{Ref: ref}); err != nil {
				t.Fatal(err)
			}
		}
		// sometimes longer than the file system waits before it writes its journal
		<-time.After(time.Duration(rand.IntN(1500)) * time.Millisecond)
		for _, ref := range refs {
			if err := s.Remove(t.Context(), ref); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func sh(t *testing.T, name string, args ...string) {
	t.Helper()
	// what has to be undone must be, whatever became of the test
	out, err := exec.CommandContext(context.WithoutCancel(t.Context()), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// disk makes a file system in a new file and mounts it until the test ends.
func disk(t *testing.T, file, size string, mkfs ...string) (mountpoint string) {
	t.Helper()
	sh(t, "truncate", "-s", size, file)
	sh(t, mkfs[0], append(mkfs[1:], file)...)
	return mount(t, file)
}

func mount(t *testing.T, file string) (mountpoint string) {
	t.Helper()
	mountpoint = file + ".mnt"
	if err := os.Mkdir(mountpoint, 0o700); err != nil {
		t.Fatal(err)
	}
	// commit=1: the file system's own rhythm falls between the cuts too
	options := "loop"
	if strings.HasSuffix(file, ".ext4") {
		options += ",commit=1"
	}
	sh(t, "mount", "-o", options, file, mountpoint)
	t.Cleanup(func() { unmount(t, mountpoint) })
	return mountpoint
}

func unmount(t *testing.T, mountpoint string) {
	t.Helper()
	if err := unix.Unmount(mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		t.Error(err)
	}
}

// snapshot copies a file in one step.
func snapshot(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		t.Fatal(err)
	}
}

// layered are images that share layers, of files small and large.
func layered(t *testing.T, r *labimage.Server) []string {
	t.Helper()
	var layers [][]labimage.Entry
	for i := range 6 {
		entries := []labimage.Entry{labimage.Dir(fmt.Sprint("d", i), 0o750), labimage.File(fmt.Sprint("d", i, "/big"), 0o644, noise(900_000+i))}
		for n := range 40 {
			entries = append(entries, labimage.File(fmt.Sprintf("d%d/f%d", i, n), 0o640, noise(100*n+i)))
		}
		entries = append(entries, labimage.Link(fmt.Sprint("d", i, "/link"), fmt.Sprint("d", i, "/big")), labimage.File(fmt.Sprint("d0/of", i), 0o600, "implicit"))
		layers = append(layers, entries)
	}
	return []string{
		push(t, r, "one:1", build(t, v1.Config{}, layers[:3]...)),
		push(t, r, "two:1", build(t, v1.Config{}, layers[1:]...)),
		push(t, r, "three:1", build(t, v1.Config{User: "3"}, layers...)),
		push(t, r, "artifact:1", artifact(t, text("weights/big", noise(900_000)), text("card", "card"), tarBlob(t, labimage.Gzip, layers[0]...))),
	}
}

func TestPowerCut(t *testing.T) {
	cuts := fewCuts
	if n, err := strconv.Atoi(os.Getenv(cutsVariable)); err == nil {
		cuts = n
	}
	r := labimage.Registry(t, labimage.Config{})
	refs := layered(t, r)
	outer := disk(t, filepath.Join(t.TempDir(), "outer.xfs"), "2G", "mkfs.xfs", "-q", "-m", "reflink=1")
	file := filepath.Join(outer, "disk.ext4")
	root := filepath.Join(disk(t, file, "400M", "mkfs.ext4", "-q"), "images")

	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestPuller$", "-test.timeout=0")
	cmd.Env = append(os.Environ(), pullerVariable+"="+root+" "+strings.Join(refs, " "))
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		_ = cmd.Process.Kill()
		<-ended
	}()
	listed := make(map[int]int)
	for i := range cuts {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the puller ended: %v", err)
		case <-time.After(time.Duration(rand.IntN(300)) * time.Millisecond): // a cut comes at any moment
		}
		copied := filepath.Join(outer, fmt.Sprintf("cut%d.ext4", i))
		snapshot(t, file, copied)
		listed[afterCut(t, copied, refs)]++
	}
	t.Logf("%d cuts; number of images that were listed, and how often: %v", cuts, listed)
}

// afterCut is the next start: what is listed must be whole, a pull must bring the rest. It returns
// how many images were listed.
func afterCut(t *testing.T, disk string, refs []string) int {
	t.Helper()
	mnt := mount(t, disk) // the journal is replayed
	defer func() {
		unmount(t, mnt)
		if err := os.Remove(disk); err != nil {
			t.Error(err)
		}
	}()
	s, err := image.Open(image.Options{Root: filepath.Join(mnt, "images"), NoSync: true})
	if err != nil {
		t.Fatalf("the store does not open after the cut: %v", err)
	}
	defer func() { _ = s.Close() }()
	images, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sound(t, s, len(images))
	for _, ref := range refs {
		pull(t, s, ref)
	}
	sound(t, s, len(refs))
	return len(images)
}

// sound checks that there are n images and that each is whole: by the trees' records, and, because
// the cut may have hit those, by the layers' diff ids.
func sound(t *testing.T, s *image.Store, n int) {
	t.Helper()
	all := verify(t, s, image.Verify{})
	if len(all) != n {
		t.Errorf("%d images, want %d", len(all), n)
	}
	for _, v := range all {
		for _, l := range v.Layers {
			if l.Found > 0 {
				t.Errorf("image %s is listed and not whole: layer %s: %v", v.ID, l.Name, l.Differences[:min(3, len(l.Differences))])
			}
		}
		if err := s.Export(t.Context(), v.ID, io.Discard); err != nil {
			t.Errorf("image %s: %v", v.ID, err)
		}
	}
}
