package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"gantry/internal/image/tree"
	"gantry/internal/pod"
)

// Verify says what to verify and whether to mend it.
type Verify struct {
	Images []string // names or ids; none is all
	Repair bool
}

// Verified is what Verify found of an image.
type Verified struct {
	ID     string          `json:"id"`
	Names  []string        `json:"names"`
	Layers []VerifiedLayer `json:"layers"` // the lowest first
	// Error says why the image could not be mended.
	Error string `json:"error,omitempty"`
}

// Whole says that nothing differs, or no longer.
func (v *Verified) Whole() bool {
	return !slices.ContainsFunc(v.Layers, func(l VerifiedLayer) bool { return l.Found > 0 && !l.Mended })
}

// VerifiedLayer is what Verify found of a layer.
type VerifiedLayer struct {
	Name        string            `json:"name"` // of its directory
	DiffID      string            `json:"diffID"`
	Entries     int64             `json:"entries"`
	Bytes       int64             `json:"bytes"` // of contents that were read
	Found       int               `json:"found"` // differences
	Differences []tree.Difference `json:"differences,omitempty"`
	Mended      bool              `json:"mended,omitempty"`
	// Containers are the keys of containers whose root file systems have the layer. Where it was
	// damaged they may have read what was wrong; mended, they see the right files when they open them
	// again.
	Containers []string `json:"containers,omitempty"`
}

const shownDifferences = 100 // of a layer

// Verify compares the layers of images with what was unpacked. A layer that differs is marked as
// damaged: the next pull of its image mends it. With Repair that is done at once, from the registry
// where contents are needed. Each is told of every image in turn. What runs goes on meanwhile.
func (s *Store) Verify(ctx context.Context, v Verify, each func(*Verified)) error {
	records, err := s.chosen(v.Images)
	if err != nil {
		return err
	}
	known := make(map[string]VerifiedLayer) // layers that several images share are read once
	for _, r := range records {
		found, err := s.verifyImage(ctx, r, v.Repair, known)
		if err != nil {
			return fmt.Errorf("verify image %s: %w", r.ID, err)
		}
		each(found)
	}
	return nil
}

func (s *Store) chosen(refs []string) ([]*record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(refs) == 0 {
		return s.index.all(), nil
	}
	var records []*record
	for _, ref := range refs {
		r, err := s.index.find(ref)
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, nil
}

func (s *Store) verifyImage(ctx context.Context, r *record, repair bool, known map[string]VerifiedLayer) (*Verified, error) {
	var names []string
	for _, l := range r.Layers {
		names = append(names, l.Name)
	}
	s.hold(names)
	defer s.release(names)
	v := &Verified{ID: r.ID, Names: slices.Concat(r.Tags, r.Digests)}
	fetch := false
	for _, l := range r.Layers {
		found, ok := known[l.Name]
		if !ok {
			var err error
			if found, err = s.verifyLayer(ctx, l, repair); err != nil {
				return nil, err
			}
			known[l.Name] = found
		}
		fetch = fetch || found.Found > 0 && !found.Mended
		v.Layers = append(v.Layers, found)
	}
	if !repair {
		return v, nil
	}
	if err := s.sync.wait(ctx); err != nil {
		return nil, err
	}
	if err := s.healed(names); err != nil {
		return nil, err
	}
	if fetch {
		err := s.refetch(ctx, r)
		for i, l := range v.Layers {
			v.Layers[i].Mended = l.Mended || l.Found > 0 && !s.isDamaged(l.Name)
			known[l.Name] = v.Layers[i]
		}
		if err != nil {
			v.Error = err.Error()
		}
	}
	return v, nil
}

// verifyLayer compares a layer with its record and marks it if it differs. What can be mended without
// its registry is.
func (s *Store) verifyLayer(ctx context.Context, l layerRecord, repair bool) (VerifiedLayer, error) {
	v := VerifiedLayer{Name: l.Name, DiffID: l.DiffID.String()}
	unlock, err := s.lockLayer(ctx, l.Name)
	if err != nil {
		return v, err
	}
	defer unlock()
	c, err := s.compare(ctx, l.Name)
	if err != nil {
		return v, err
	}
	v.Entries, v.Bytes, v.Found = c.Entries, c.Bytes, len(c.Differences)
	v.Differences = c.Differences[:min(len(c.Differences), shownDifferences)]
	if v.Found == 0 {
		return v, nil
	}
	v.Containers = s.users(l.Name)
	s.log.Warn("layer is damaged", slog.String("layer", l.Name), slog.String("diffID", v.DiffID),
		slog.Int("differences", v.Found), slog.String("first", v.Differences[0].String()))
	if err = s.markSharing(l, c.Fetch()); err != nil {
		return v, err
	}
	if !repair || c.Fetch() {
		return v, nil
	}
	if err = tree.Mend(s.treePath(l.Name), s.layerPath(l.Name), "", c.Differences); err != nil {
		return v, err
	}
	s.sync.dirty()
	if c, err = s.compare(ctx, l.Name); err != nil || len(c.Differences) > 0 {
		return v, err
	}
	v.Mended = true
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mended(l.Name)
	return v, nil
}

// compare is tree.Compare, to which a record that is lost is a difference.
func (s *Store) compare(ctx context.Context, name string) (*tree.Comparison, error) {
	c, err := tree.Compare(ctx, s.treePath(name), s.layerPath(name))
	if errdefs.IsDataLoss(err) {
		lost := tree.Difference{Path: ".", Kind: tree.Record, Detail: err.Error(), Fetch: true}
		return &tree.Comparison{Differences: []tree.Difference{lost}}, nil
	}
	return c, err
}

// refetch mends the damaged layers of r from a registry that it was pulled from.
func (s *Store) refetch(ctx context.Context, r *record) error {
	if len(r.Digests) == 0 || len(r.Manifest) == 0 {
		return fmt.Errorf("the image came from no registry; import it again: %w", errdefs.ErrFailedPrecondition)
	}
	m, err := parseManifest(r.Manifest)
	if err != nil {
		return err
	}
	d, err := newDescribed(r.Manifest, m, r.Config)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range r.Digests {
		err := s.refetchFrom(ctx, name, d)
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs = append(errs, fmt.Errorf("from %s: %w", name, err))
	}
	return fmt.Errorf("fetch again (a pull with credentials mends it too): %w", errors.Join(errs...))
}

func (s *Store) refetchFrom(ctx context.Context, name string, d *described) error {
	named, err := Normalize(name)
	if err != nil {
		return err
	}
	session, err := s.remote.Open(named, nil) //nolint:contextcheck // nothing is sent before Resolve or Blob
	if err != nil {
		return err
	}
	defer session.Close()
	_, err = s.assemble(ctx, d, nil, func(ctx context.Context, i int) (*layer, error) {
		return s.fetch(ctx, session, d, i, func(pod.LayerProgress) {})
	})
	return err
}

// mendWith mends l, which has its place, with the same layer unpacked again.
func (s *Store) mendWith(ctx context.Context, l *layer, st staged) error {
	name := l.record.Name
	unlock, err := s.lockLayer(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	c, err := s.compare(ctx, name)
	if err == nil && len(c.Differences) > 0 {
		err = tree.Mend(s.treePath(name), s.layerPath(name), st.dir(), c.Differences)
	}
	if err == nil {
		c, err = s.compare(ctx, name)
	}
	if err != nil {
		return fmt.Errorf("mend layer %s: %w", name, err)
	}
	if len(c.Differences) > 0 {
		return fmt.Errorf("layer %s differs after it was mended: %v: %w", name, c.Differences[0], errdefs.ErrDataLoss)
	}
	s.sync.dirty()
	s.log.Info("layer is mended", slog.String("layer", name))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.layers[name] = l
	s.mended(name)
	return nil
}

// lockLayer keeps others from comparing or mending a layer.
func (s *Store) lockLayer(ctx context.Context, name string) (unlock func(), err error) {
	return s.keys.Lock(ctx, "layer/"+name) // no container's key has a slash
}

func (s *Store) damagePath(name string) string { return filepath.Join(s.dir(damagedDir), name) }

func (s *Store) isDamaged(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.damaged[name]
}

// markDamaged remembers, beyond a restart, that a layer is damaged.
func (s *Store) markDamaged(name string) error {
	if err := os.WriteFile(s.damagePath(name), nil, 0o600); err != nil {
		return fmt.Errorf("mark damaged layer: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.damaged[name] = true
	return nil
}

// markSharing marks l and, where contents are damaged, the layers that share its files.
func (s *Store) markSharing(l layerRecord, contents bool) error {
	s.mu.Lock()
	all := maps.Clone(s.layers)
	s.mu.Unlock()
	errs := []error{s.markDamaged(l.Name)}
	for name, other := range all {
		if contents && name != l.Name && other.record.identity() == l.identity() {
			errs = append(errs, s.markDamaged(name))
		}
	}
	return errors.Join(errs...)
}

// mended notes that a damaged layer is sound, though not yet on the disk. The caller holds mu.
func (s *Store) mended(name string) {
	if s.damaged[name] {
		s.damaged[name] = false
	}
}

// healed forgets the damage of those of the named layers that were mended. The caller has synced.
func (s *Store) healed(names []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		if damaged, ever := s.damaged[n]; ever && !damaged {
			delete(s.damaged, n)
			if err := removeFiles(s.damagePath(n)); err != nil {
				return fmt.Errorf("forget the damage of layer %s: %w", n, err)
			}
		}
	}
	return nil
}

// whole says whether no layer of r is known to be damaged. One whose directory is gone becomes known.
func (s *Store) whole(r *record) bool {
	whole := true
	for _, l := range r.Layers {
		if _, err := os.Lstat(s.layerPath(l.Name)); errors.Is(err, os.ErrNotExist) {
			if err := s.markDamaged(l.Name); err != nil {
				s.log.Warn("layer's directory is gone", slog.String("layer", l.Name), slog.Any("error", err))
			}
		}
		whole = whole && !s.isDamaged(l.Name)
	}
	return whole
}

// users are the keys of the containers that have a layer.
func (s *Store) users(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for key, c := range s.containers {
		if slices.ContainsFunc(c.Layers, func(l layerRecord) bool { return l.Name == name }) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}
