package enginetest

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// ImagesHarness is one empty image store under test.
type ImagesHarness struct {
	Images engine.Images
	Refs   [2]string // two different images that can be pulled, by "host/name:tag"
	Absent string    // a reference of the same registry that cannot
}

// RunImages holds a store of images to the contract.
func RunImages(t *testing.T, open func(t *testing.T) ImagesHarness) {
	t.Helper()
	for _, test := range []struct {
		rule string
		run  func(context.Context, *testing.T, ImagesHarness)
	}{
		{"a pulled image is found by all its names", imageNames},
		{"pulls of one image join", imageJoin},
		{"what is not there is ErrNotFound", imageAbsent},
		{"remove removes, twice is no error", imageRemove},
		{"what was exported can be imported", imagePort},
	} {
		t.Run(test.rule, func(t *testing.T) {
			h := open(t)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			test.run(ctx, t, h)
		})
	}
}

func pull(ctx context.Context, t *testing.T, h ImagesHarness, ref string) string {
	t.Helper()
	id, err := h.Images.Pull(ctx, &pod.Pull{Ref: ref})
	if err != nil || id == "" {
		t.Fatalf("pull %s: %q, %v", ref, id, err)
	}
	return id
}

func imageNames(ctx context.Context, t *testing.T, h ImagesHarness) {
	a, b := pull(ctx, t, h, h.Refs[0]), pull(ctx, t, h, h.Refs[1])
	if a == b {
		t.Fatalf("two images have the id %s", a)
	}
	for _, ref := range []string{h.Refs[0], a, a[:len(a)-8]} {
		img, err := h.Images.Get(ctx, ref)
		if err != nil || img.ID != a || img.Size == 0 {
			t.Errorf("get %s: %+v, %v; want %s with a size", ref, img, err, a)
		}
	}
	all, err := h.Images.List(ctx)
	if err != nil || len(all) != 2 {
		t.Errorf("list: %d images, %v; want 2", len(all), err)
	}
	images, layers, err := h.Images.Usage(ctx)
	if err != nil || len(images) == 0 || len(layers) == 0 || images[0].Bytes == 0 || images[0].Mountpoint == "" {
		t.Errorf("usage: %+v, %+v, %v", images, layers, err)
	}
}

func imageJoin(ctx context.Context, t *testing.T, h ImagesHarness) {
	ids := make([]string, 4)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			var err error
			if ids[i], err = h.Images.Pull(ctx, &pod.Pull{Ref: h.Refs[0]}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("pulls of one image gave %v", ids)
		}
	}
	if all, err := h.Images.List(ctx); err != nil || len(all) != 1 {
		t.Errorf("list: %d images, %v; want 1", len(all), err)
	}
}

func imageAbsent(ctx context.Context, t *testing.T, h ImagesHarness) {
	if _, err := h.Images.Pull(ctx, &pod.Pull{Ref: h.Absent}); !errdefs.IsNotFound(err) {
		t.Errorf("pull: %v; want ErrNotFound", err)
	}
	if _, err := h.Images.Get(ctx, h.Refs[0]); !errdefs.IsNotFound(err) {
		t.Errorf("get: %v; want ErrNotFound", err)
	}
	if all, err := h.Images.List(ctx); err != nil || len(all) != 0 {
		t.Errorf("list: %d images, %v; want none", len(all), err)
	}
}

func imageRemove(ctx context.Context, t *testing.T, h ImagesHarness) {
	id := pull(ctx, t, h, h.Refs[0])
	for range 2 {
		if err := h.Images.Remove(ctx, h.Refs[0]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Images.Get(ctx, id); !errdefs.IsNotFound(err) {
		t.Errorf("get after remove: %v; want ErrNotFound", err)
	}
}

func imagePort(ctx context.Context, t *testing.T, h ImagesHarness) {
	porter, ok := h.Images.(engine.ImagePorter)
	if !ok {
		t.Log("this store does not move images")
		return
	}
	id := pull(ctx, t, h, h.Refs[0])
	var tar bytes.Buffer
	if err := porter.Export(ctx, id, &tar); err != nil {
		t.Fatal(err)
	}
	if err := h.Images.Remove(ctx, id); err != nil {
		t.Fatal(err)
	}
	ids, err := porter.Import(ctx, &tar)
	if err != nil || len(ids) != 1 {
		t.Fatalf("import: %v, %v", ids, err)
	}
	if img, err := h.Images.Get(ctx, ids[0]); err != nil || img.ID != ids[0] {
		t.Errorf("get: %+v, %v", img, err)
	}
}
