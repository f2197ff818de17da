package image_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/image"
	"gantry/internal/labimage"
)

func TestLayerUsageCountsWhatTheContainerWrote(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s := open(t, image.Options{})
	id := pull(t, s, push(t, r, "app:1", build(t, v1.Config{}, []labimage.Entry{labimage.File("big", 0o644, string(make([]byte, 4<<20)))})))
	root := prepare(t, s, "c", id)
	if err := os.WriteFile(filepath.Join(root, "written"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	u, err := s.LayerUsage("c")
	for late := time.Now().Add(time.Minute); u == nil && err == nil && time.Now().Before(late); u, err = s.LayerUsage("c") {
		<-time.After(time.Millisecond) // nobody waits long for a measure: it is there when it is asked for again
	}
	if err != nil {
		t.Fatal(err)
	}
	if u == nil || u.Bytes < 1<<20 || u.Bytes > 2<<20 || u.Inodes != 2 || u.At.IsZero() || u.Mountpoint == "" {
		t.Errorf("a root directory and a file of 1 MiB occupy %+v", u)
	}
	if err := s.Release(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.LayerUsage("c"); !errdefs.IsNotFound(err) {
		t.Errorf("after the release: %v", err)
	}
}
