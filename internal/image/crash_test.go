package image_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/image"
	"gantry/internal/labimage"
	"gantry/internal/pod"
)

const victim = "GANTRY_IMAGE_VICTIM" // "root reference" of a pull that is to be killed

// TestVictim is the process that TestKilledPull kills.
func TestVictim(t *testing.T) {
	root, ref, ok := strings.Cut(os.Getenv(victim), " ")
	if !ok {
		return
	}
	s, err := image.Open(image.Options{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(t.Context(), &pod.Pull{Ref: ref}); err != nil {
		t.Fatal(err)
	}
}

func TestKilledPull(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	var layers [][]labimage.Entry
	for i := range 6 {
		layers = append(layers, []labimage.Entry{labimage.File(fmt.Sprint("f", i), 0o644, noise(700_000+i))})
	}
	ref := push(t, r, "app:1", build(t, v1.Config{}, layers...))
	whole, absent := 0, 0
	for i := range 20 {
		root := t.TempDir()
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestVictim$")
		cmd.Env = append(os.Environ(), victim+"="+root+" "+ref)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(time.Duration(i)*12*time.Millisecond, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait() // killed or done: both are wanted
		kill.Stop()
		s := open(t, image.Options{Root: root})
		images, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(images) == 0 {
			absent++
			if l := left(t, root); len(l) > 0 {
				t.Errorf("without an image there is %v", l)
			}
		} else {
			whole++
		}
		rootfs := prepare(t, s, "c", pull(t, s, ref))
		for n := range layers {
			data, err := os.ReadFile(filepath.Join(rootfs, fmt.Sprint("f", n)))
			if err != nil || string(data) != noise(700_000+n) {
				t.Fatalf("killed after %d ms: layer %d is not whole: %d bytes, %v", i*12, n, len(data), err)
			}
		}
		if err := s.Release(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
	}
	t.Logf("the image was whole %d times and absent %d times", whole, absent)
}
