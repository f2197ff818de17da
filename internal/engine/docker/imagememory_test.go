package docker_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine/docker"
	"gantry/internal/labdocker"
	"gantry/internal/pod"
)

// TestImagesAreKnownWhileEventsAreHeard asks for an image by its id while others change it behind the engine.
func TestImagesAreKnownWhileEventsAreHeard(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			s := newStation(t, labdocker.Options{Version: v})
			recorder := s.dockerd.Record()
			e := open(t, s, docker.Options{Endpoint: recorder.Endpoint()})
			images := e.Images()
			named, err := images.Get(t.Context(), s.image.ID)
			if err != nil {
				t.Fatal(err)
			}
			get := func() (*pod.Image, int) {
				recorder.Take()
				img, failed := images.Get(t.Context(), named.ID)
				if failed != nil && !errdefs.IsNotFound(failed) {
					t.Fatal(failed)
				}
				return img, labdocker.Count(recorder.Take())["GET /images/ID/json"]
			}
			for range 2 {
				if _, asked := get(); asked != 1 {
					t.Fatalf("asked %d times while no events are heard; want each time", asked)
				}
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			heard, err := e.Watch(ctx)
			if err != nil {
				t.Fatal(err)
			}
			get()
			if img, asked := get(); asked != 0 || !slices.Equal(img.Tags, named.Tags) || img.Config.Cmd == nil && img.Config.Env == nil {
				t.Errorf("asked %d times more for %+v; want it from memory", asked, img)
			}
			s.dockerd.Docker("tag", s.image.ID, "lab/second:1")
			eventually(t, "the second name", func() bool {
				img, _ := get()
				return slices.Contains(img.Tags, "docker.io/lab/second:1")
			})
			s.dockerd.Docker("rmi", "lab/second:1", s.image.ID)
			eventually(t, "nothing", func() bool {
				img, _ := get()
				return img == nil
			})
			stop()
			for range heard { // until it is closed
			}
		})
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	if !within(t, holds) {
		t.Fatalf("not within %v: %s", patience, what)
	}
}

// within says whether it holds before patience ends.
func within(t *testing.T, holds func() bool) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}
