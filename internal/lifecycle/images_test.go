package lifecycle_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/engine/fake"
	"gantry/internal/pod"
)

func TestImageIsCopiedToTheEngineThatLacksIt(t *testing.T) {
	w := newWorld(t)
	second, lacking := fake.New(), fake.NewImages("localhost/other:1")
	w.opts.Engines["second"], w.opts.Images["second"] = second, lacking
	w.opts.Handlers["old"] = "second"
	m := w.start()
	spec := sandbox("web")
	spec.Handler = "old"
	id, err := m.RunPod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	cid := createContainer(t, m, id, "main")
	img, err := m.Image(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	if c := stateOf(t, m, cid); c.ImageRef != img.ID || c.Spec.ImageID != img.ID || c.Spec.ImageName != image {
		t.Errorf("container of image %q, %q, %q; want %s", c.ImageRef, c.Spec.ImageID, c.Spec.ImageName, img.ID)
	}
	if lacking.Pulls() != 0 || len(second.Everything()) != 2 {
		t.Errorf("%d pulls, the second engine has %v; want a copy without a registry", lacking.Pulls(), second.Everything())
	}
	if _, err = m.PullImage(t.Context(), "uid-web", &pod.Pull{Ref: "localhost/other:1"}); err != nil || lacking.Pulls() != 1 {
		t.Errorf("a pull for that pod: %v, %d pulls in its engine's store; want 1", err, lacking.Pulls())
	}
	all, err := m.ListImages(t.Context())
	if err != nil || len(all) != 2 {
		t.Errorf("%d images, %v; want the union of two", len(all), err)
	}
	lacking.Faults().Fail("Import", errors.New("copied again"))
	if _, err = m.CreateContainer(t.Context(), id, container("twice")); err != nil {
		t.Errorf("a second container of an image that was copied: %v", err)
	}
	images, layers, err := m.ImageUsage(t.Context())
	if err != nil || len(images) != 2 || len(layers) != 2 {
		t.Errorf("usage %v, %v, %v; want that of both stores", images, layers, err)
	}
	for range 2 {
		if err := m.RemoveImage(t.Context(), image); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []engine.Images{w.images, lacking} {
		if _, err := s.Get(t.Context(), image); !errdefs.IsNotFound(err) {
			t.Errorf("a store keeps a removed image: %v", err)
		}
	}
}

// renaming is a store that has ids of its own: Docker's containerd store names an image by its manifest.
type renaming struct{ *fake.Images }

func (r renaming) Import(ctx context.Context, in io.Reader) ([]string, error) {
	ids, err := r.Images.Import(ctx, in)
	for i, id := range ids {
		img, getErr := r.Images.Get(ctx, id)
		if getErr != nil {
			return nil, getErr
		}
		own := *img
		own.ID, own.Tags = "sha256:0"+strings.TrimPrefix(id, "sha256:")[1:], nil
		r.Images.Add(&own)
		if removeErr := r.Images.Remove(ctx, id); removeErr != nil {
			return nil, removeErr
		}
		ids[i] = own.ID
	}
	return ids, err
}

func TestCopyWithAnIDOfItsOwnIsMadeOnce(t *testing.T) {
	w := newWorld(t)
	store := renaming{fake.NewImages()}
	w.opts.Engines["second"], w.opts.Images["second"] = fake.New(), store
	w.opts.Handlers["old"] = "second"
	m := w.start()
	spec := sandbox("web")
	spec.Handler = "old"
	id, err := m.RunPod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	first := stateOf(t, m, createContainer(t, m, id, "main"))
	store.Faults().Fail("Import", errors.New("copied again"))
	second := stateOf(t, m, createContainer(t, m, id, "other"))
	img, err := store.Get(t.Context(), first.ImageRef)
	if err != nil || img.ID != first.ImageRef || second.ImageRef != first.ImageRef {
		t.Errorf("containers of images %q and %q, the store has %+v, %v", first.ImageRef, second.ImageRef, img, err)
	}
}

func TestStoreThatDoesNotAnswerIsLeftOut(t *testing.T) {
	w := newWorld(t)
	away := fake.NewImages()
	for _, method := range []string{"List", "Usage", "Get"} {
		away.Faults().Fail(method, errdefs.ErrUnavailable)
	}
	w.opts.Engines["second"], w.opts.Images["second"] = fake.New(), away
	w.opts.Handlers["old"] = "second"
	m := w.start()
	if all, err := m.ListImages(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("%d images, %v; want those of the store that answers", len(all), err)
	}
	if images, _, err := m.ImageUsage(t.Context()); err != nil || len(images) != 1 {
		t.Errorf("usage %v, %v; want that of the store that answers", images, err)
	}
	if _, err := m.Image(t.Context(), image); err != nil {
		t.Errorf("image in the store that answers: %v", err)
	}
	if _, err := m.Image(t.Context(), "localhost/other:1"); !errdefs.IsUnavailable(err) {
		t.Errorf("image that may be in the store that does not answer: %v; want ErrUnavailable", err)
	}
	w.images.Faults().Fail("List", errdefs.ErrUnavailable)
	if _, err := m.ListImages(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("list without the default engine's store: %v; want ErrUnavailable", err)
	}
}
