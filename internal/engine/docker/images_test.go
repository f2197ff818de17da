package docker_test

import (
	"os"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/engine/enginetest"
	"gantry/internal/labdocker"
	"gantry/internal/labimage"
)

func TestImages(t *testing.T) {
	for name, o := range map[string]labdocker.Options{
		"20.10":                 {Version: labdocker.Debian},
		"current, containerd":   {Store: labdocker.Snapshotter},
		"current, graph driver": {Store: labdocker.GraphDriver},
	} {
		t.Run(name, func(t *testing.T) {
			d := labdocker.Start(t, o)
			enginetest.RunImages(t, func(t *testing.T) enginetest.ImagesHarness {
				d.Docker("image", "prune", "--all", "--force")
				registry := labimage.Registry(t, labimage.Config{})
				h := enginetest.ImagesHarness{Absent: registry.Host + "/one:absent"}
				for i, name := range []string{"one:1", "two:2"} {
					img, err := labimage.Busybox(func(c *v1.Config) { c.Env = append(c.Env, "NAME="+name) })
					if err != nil {
						t.Fatal(err)
					}
					if h.Refs[i], err = registry.Push(name, img); err != nil {
						t.Fatal(err)
					}
				}
				h.Images = newStationOn(t, d).Images()
				return h
			})
			t.Run("their directory is there", func(t *testing.T) {
				images, layers, err := newStationOn(t, d).Images().Usage(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for _, u := range append(images, layers...) {
					if _, err := os.Stat(u.Mountpoint); err != nil { // the kubelet asks for its file system
						t.Error(err)
					}
				}
			})
		})
	}
}
