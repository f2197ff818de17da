package fake

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// Images is an engine.Images and engine.ImagePorter in memory.
type Images struct {
	faults faults
	prefix string

	mu       sync.Mutex
	images   map[string]*pod.Image    // by id; guarded by mu
	registry map[string]struct{}      // references that can be pulled; guarded by mu
	pulling  map[string]chan struct{} // closed when that pull has ended; guarded by mu
	pulls    int                      // fetches from the registry; guarded by mu
}

var (
	_ engine.Images      = (*Images)(nil)
	_ engine.ImagePorter = (*Images)(nil)
)

// NewImages returns an empty store which can pull the references given.
func NewImages(registry ...string) *Images {
	s := &Images{
		prefix: "sha256:", images: make(map[string]*pod.Image),
		registry: make(map[string]struct{}), pulling: make(map[string]chan struct{}),
	}
	for _, ref := range registry {
		s.registry[ref] = struct{}{}
	}
	return s
}

// Faults are the store's faults.
func (s *Images) Faults() Faults { return Faults{&s.faults} }

// Add puts an image into the store.
func (s *Images) Add(img *pod.Image) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[img.ID] = img
}

// Pulls is how often an image was fetched.
func (s *Images) Pulls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pulls
}

// Pull implements engine.Images.
func (s *Images) Pull(ctx context.Context, p *pod.Pull) (string, error) {
	for {
		s.mu.Lock()
		other, busy := s.pulling[p.Ref]
		if !busy {
			s.pulling[p.Ref] = make(chan struct{})
		}
		s.mu.Unlock()
		if !busy {
			break
		}
		select {
		case <-other:
			if img, err := s.Get(ctx, p.Ref); err == nil {
				return img.ID, nil
			}
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		close(s.pulling[p.Ref])
		delete(s.pulling, p.Ref)
	}()
	if err := s.faults.before(ctx, "Pull"); err != nil {
		return "", err
	}
	return s.fetch(p.Ref)
}

func (s *Images) fetch(ref string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.registry[ref]; !ok {
		return "", fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
	}
	s.pulls++
	sum := sha256.Sum256([]byte(ref))
	id := s.prefix + hex.EncodeToString(sum[:])
	s.images[id] = &pod.Image{ID: id, Tags: []string{ref}, Size: 1 << 20, Pulled: time.Now()}
	return id, nil
}

// Get implements engine.Images.
func (s *Images) Get(ctx context.Context, ref string) (*pod.Image, error) {
	if err := s.faults.before(ctx, "Get"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.find(ref)
}

// find looks an image up. s.mu is held.
func (s *Images) find(ref string) (*pod.Image, error) {
	var found []*pod.Image
	for id, img := range s.images {
		if id == ref || slices.Contains(img.Tags, ref) || slices.Contains(img.Digests, ref) {
			return img, nil
		}
		if len(ref) > 3 && (strings.HasPrefix(id, ref) || strings.HasPrefix(id, s.prefix+ref)) {
			found = append(found, img)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
	}
	return nil, fmt.Errorf("image id %s is ambiguous: %w", ref, errdefs.ErrInvalidArgument)
}

// List implements engine.Images.
func (s *Images) List(ctx context.Context) ([]*pod.Image, error) {
	if err := s.faults.before(ctx, "List"); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*pod.Image
	for _, id := range slices.Sorted(maps.Keys(s.images)) {
		all = append(all, s.images[id])
	}
	return all, nil
}

// Remove implements engine.Images.
func (s *Images) Remove(ctx context.Context, ref string) error {
	if err := s.faults.before(ctx, "Remove"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	img, err := s.find(ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err == nil {
		delete(s.images, img.ID)
	}
	return err
}

// Usage implements engine.Images.
func (s *Images) Usage(ctx context.Context) (images, layers []pod.Usage, err error) {
	if err := s.faults.before(ctx, "Usage"); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	u := pod.Usage{Mountpoint: "/fake/images", At: time.Now()}
	for _, img := range s.images {
		u.Bytes += img.Size
		u.Inodes++
	}
	return []pod.Usage{u}, []pod.Usage{{Mountpoint: "/fake/layers", At: u.At}}, nil
}

// Export implements engine.ImagePorter; the tar of the fake is JSON.
func (s *Images) Export(ctx context.Context, id string, w io.Writer) error {
	if err := s.faults.before(ctx, "Export"); err != nil {
		return err
	}
	s.mu.Lock()
	img, err := s.find(id)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(img)
}

// Import implements engine.ImagePorter.
func (s *Images) Import(ctx context.Context, r io.Reader) ([]string, error) {
	if err := s.faults.before(ctx, "Import"); err != nil {
		return nil, err
	}
	var img pod.Image
	if err := json.NewDecoder(r).Decode(&img); err != nil {
		return nil, fmt.Errorf("read image: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	s.Add(&img)
	return []string{img.ID}, nil
}
