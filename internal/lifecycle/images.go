package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// stores returns every image store once, the default engine's first, then by engine name.
func (m *Manager) stores() []engine.Images {
	all := []engine.Images{m.opts.Images[m.defaultEngine()]}
	for _, name := range slices.Sorted(maps.Keys(m.opts.Images)) {
		if s := m.opts.Images[name]; !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// PullImage pulls into the store of the engine that podUID's sandbox is on, else of the default
// engine. Repeats join in the store.
func (m *Manager) PullImage(ctx context.Context, podUID string, p *pod.Pull) (string, error) {
	name := m.defaultEngine()
	if podUID != "" {
		for _, e := range m.index.allPods() {
			if sb := e.now.Load(); sb.Spec.Metadata.UID == podUID {
				name = sb.Engine // the newest sandbox of the pod counts
			}
		}
	}
	began := &activePull{image: p.Ref, began: time.Now()}
	m.pulling.Store(began, nil)
	defer m.pulling.Delete(began)
	return m.opts.Images[name].Pull(ctx, p)
}

// activePull is a pull that somebody waits for, for people who ask what hangs.
type activePull struct {
	image string
	began time.Time
}

// sayWhatIsPulled names every image that is being pulled, and for how long.
func (m *Manager) sayWhatIsPulled(verbose map[string]string) {
	m.pulling.Range(func(key, _ any) bool {
		if p, ok := key.(*activePull); ok {
			verbose["image."+p.image] = fmt.Sprintf("pulling for %v", time.Since(p.began).Round(time.Millisecond))
		}
		return true
	})
}

// Image finds an image in any store.
func (m *Manager) Image(ctx context.Context, ref string) (*pod.Image, error) {
	img, _, err := m.findImage(ctx, ref)
	return img, err
}

func (m *Manager) findImage(ctx context.Context, ref string) (*pod.Image, engine.Images, error) {
	var failed error
	for _, s := range m.stores() {
		img, err := s.Get(ctx, ref)
		if err == nil {
			return img, s, nil
		}
		if !errdefs.IsNotFound(err) && failed == nil {
			failed = err
		}
	}
	if failed != nil {
		return nil, nil, failed
	}
	return nil, nil, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
}

// ListImages is the union of all stores by id. A store that is not the default engine's and does not
// answer is left out: pods on other engines go on without it.
func (m *Manager) ListImages(ctx context.Context) ([]*pod.Image, error) {
	var all []*pod.Image
	seen := make(map[string]struct{})
	for i, s := range m.stores() {
		images, err := s.List(ctx)
		if i > 0 && errdefs.IsUnavailable(err) {
			m.log.Debug("an image store is left out of the list", "error", err)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list images: %w", err)
		}
		for _, img := range images {
			if _, twice := seen[img.ID]; !twice {
				seen[img.ID] = struct{}{}
				all = append(all, img)
			}
		}
	}
	return all, nil
}

// RemoveImage removes an image from all stores. Absent is no error.
func (m *Manager) RemoveImage(ctx context.Context, ref string) error {
	var errs []error
	for _, s := range m.stores() {
		if err := s.Remove(ctx, ref); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// ImageUsage tells what the stores occupy, the default engine's file system first: the kubelet reads
// only that.
func (m *Manager) ImageUsage(ctx context.Context) (images, layers []pod.Usage, err error) {
	for n, s := range m.stores() {
		i, l, err := s.Usage(ctx)
		if n > 0 && errdefs.IsUnavailable(err) {
			m.log.Debug("an image store is left out of the usage", "error", err)
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("usage of images: %w", err)
		}
		images, layers = append(images, i...), append(layers, l...)
	}
	return images, layers, nil
}

// imageFor finds an image for an engine, copying it from another engine's store where that has it.
func (m *Manager) imageFor(ctx context.Context, engineName, ref string) (*pod.Image, error) {
	own := m.opts.Images[engineName]
	img, err := own.Get(ctx, ref)
	if err == nil || !errdefs.IsNotFound(err) {
		return img, err
	}
	found, from, err := m.findImage(ctx, ref)
	if err != nil {
		return nil, err
	}
	key := copied{found.ID, engineName}
	if img := m.heldAs(ctx, own, found, key); img != nil {
		return img, nil
	}
	id, err := m.attempts.do(ctx, fmt.Sprintf("copy %q to %q", found.ID, engineName), func(ctx context.Context) (string, error) {
		return copyImage(ctx, from, own, found.ID)
	})
	if err != nil {
		return nil, fmt.Errorf("copy image %s to engine %s: %w", ref, engineName, err)
	}
	m.copies.Store(key, id)
	return own.Get(ctx, id)
}

// copied names an image that was copied: its id in the store it came from, and the engine it went to.
type copied struct{ id, engine string }

// heldAs finds in the store own what another calls found; nil when it is not there. A store may have
// an id of its own for it, but the digest of a manifest is the same everywhere.
func (m *Manager) heldAs(ctx context.Context, own engine.Images, found *pod.Image, key copied) *pod.Image {
	names := slices.Clone(found.Digests)
	if id, ok := m.copies.Load(key); ok {
		names = append(names, id.(string))
	}
	for _, name := range names {
		if img, err := own.Get(ctx, name); err == nil {
			return img
		}
	}
	return nil
}

// copyImage streams an image from one store to another and returns its id there.
func copyImage(ctx context.Context, from, to engine.Images, id string) (string, error) {
	src, ok := from.(engine.ImagePorter)
	dst, too := to.(engine.ImagePorter)
	if !ok || !too {
		return "", fmt.Errorf("these image stores do not exchange images: %w", errdefs.ErrNotImplemented)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	exported := make(chan error, 1)
	go func() {
		err := src.Export(ctx, id, w)
		_ = w.CloseWithError(err)
		exported <- err
	}()
	ids, err := dst.Import(ctx, r)
	cancel()
	_ = r.Close()
	if sent := <-exported; err != nil {
		return "", errors.Join(err, sent)
	}
	if len(ids) != 1 {
		return "", fmt.Errorf("the copy became %d images: %w", len(ids), errdefs.ErrInternal)
	}
	return ids[0], nil
}
