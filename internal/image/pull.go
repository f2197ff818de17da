package image

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"gantry/internal/image/remote"
	"gantry/internal/pod"
)

// pullKey is what two pulls must have in common to be one.
type pullKey struct {
	ref  string
	auth pod.Auth
}

// Pull fetches the image that p.Ref names for this platform and returns its id. Two pulls of one
// reference with the same credentials join; pulls of different images share the layers they have in
// common. A failed or cancelled pull leaves nothing behind.
func (s *Store) Pull(ctx context.Context, p *pod.Pull) (string, error) {
	named, err := Normalize(p.Ref)
	if err != nil {
		return "", err
	}
	key := pullKey{ref: named.String()}
	if p.Auth != nil {
		key.auth = *p.Auth
	}
	id, _, err := s.pulls.do(ctx, key, p.Progress, func(ctx context.Context, notify func(pod.LayerProgress)) (string, error) {
		return s.pull(ctx, named, &key.auth, notify)
	})
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", named, err)
	}
	return id, nil
}

func (s *Store) pull(ctx context.Context, named reference.Named, auth *pod.Auth, notify func(pod.LayerProgress)) (string, error) {
	began := time.Now()
	session, err := s.remote.Open(named, auth) //nolint:contextcheck // nothing is asked of anybody yet
	if err != nil {
		return "", err
	}
	defer session.Close()
	desc, err := session.Resolve(ctx)
	if err != nil {
		return "", err
	}
	names := []string{named.String(), reference.TrimNamed(named).String() + "@" + desc.Digest.String()}
	id, known, err := s.adopt(desc, names)
	if known || err != nil {
		return id, err
	}
	d, err := s.describe(ctx, session, desc)
	if err != nil {
		return "", err
	}
	resolved := time.Now()
	var bytes int64
	for _, l := range d.layers {
		bytes += l.blob.Size
	}
	id, err = s.assemble(ctx, d, names, func(ctx context.Context, i int) (*layer, error) {
		return s.fetch(ctx, session, d, i, notify)
	})
	if err != nil {
		return "", err
	}
	took := time.Since(resolved)
	s.log.Info("image pulled", slog.String("image", named.String()), slog.String("id", id),
		slog.Int("layers", len(d.layers)), slog.Int64("bytes", bytes), slog.Duration("resolve", resolved.Sub(began)),
		slog.Duration("fetch", took), slog.Float64("MBps", float64(bytes)/1e6/max(took.Seconds(), 1e-6)))
	return id, nil
}

// adopt gives the image that was pulled as desc before the names it has now. An image that is known
// to be damaged is left to be pulled again.
func (s *Store) adopt(desc ocispec.Descriptor, names []string) (id string, ok bool, err error) {
	s.commit.Lock()
	defer s.commit.Unlock()
	s.mu.Lock()
	r := s.index.withTarget(desc.Digest.String())
	s.mu.Unlock()
	if r == nil || !s.whole(r) {
		return "", false, nil
	}
	return r.ID, true, s.publish(r, names)
}

// publish makes r known under names too, and takes them from the image that had them.
// The caller holds commit.
func (s *Store) publish(r *record, names []string) error {
	n := r
	losers := make(map[string]*record)
	s.mu.Lock()
	known := s.index.byID[r.ID]
	for _, name := range names {
		n = n.named(name)
		other := s.index.byID[s.index.byName[name]]
		if other == nil || other.ID == r.ID {
			continue
		}
		if l := losers[other.ID]; l != nil {
			other = l
		}
		losers[other.ID] = other.without(name)
	}
	s.mu.Unlock()
	if known == nil || len(n.Tags) != len(known.Tags) || len(n.Digests) != len(known.Digests) {
		if err := s.replace(n); err != nil {
			return err
		}
	}
	for _, l := range losers {
		if err := s.replace(l); err != nil {
			return err
		}
	}
	return nil
}

// assemble gets every layer of d, side by side, and makes the image known when all are on the disk.
func (s *Store) assemble(ctx context.Context, d *described, names []string, get func(context.Context, int) (*layer, error)) (string, error) {
	held := make([]string, len(d.layers))
	for i, l := range d.layers {
		held[i] = l.name()
	}
	s.hold(held)
	defer func() { s.release(held) }()
	layers := make([]*layer, len(d.layers))
	g, gctx := errgroup.WithContext(ctx)
	for i := range d.layers {
		g.Go(func() (err error) {
			layers[i], err = get(gctx, i)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return "", err
	}
	if err := s.adapt(ctx, layers, &held); err != nil {
		return "", err
	}
	s.opts.Hook("image/layers complete")
	if err := s.sync.wait(ctx); err != nil {
		return "", err
	}
	if err := s.healed(held); err != nil {
		return "", err
	}
	s.opts.Hook("image/layers synced")
	s.commit.Lock()
	defer s.commit.Unlock()
	r := s.record(d, layers)
	if err := r.decode(); err != nil {
		return "", err
	}
	return d.id, s.publish(r, names)
}

// record makes the record of an image, or takes over the names that it has already.
func (s *Store) record(d *described, layers []*layer) *record {
	r := &record{ID: d.id, Artifact: d.artifact, Config: d.config, Manifest: d.manifest, Annotations: d.annotations, Pulled: time.Now().UTC()}
	for _, l := range layers {
		r.Layers = append(r.Layers, l.record)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.index.byID[d.id]; known != nil {
		r.Tags, r.Digests = known.Tags, known.Digests
	}
	return r
}

// fetch gets layer i of d from its registry, unless it is here or on its way.
func (s *Store) fetch(ctx context.Context, session *remote.Session, d *described, i int, notify func(pod.LayerProgress)) (*layer, error) {
	w := &d.layers[i]
	desc := w.blob
	l, err := s.obtain(ctx, w.origin, notify, func(ctx context.Context, notify func(pod.LayerProgress)) (*layer, error) {
		fetching, abort := context.WithCancel(ctx)
		defer abort()
		blob := session.Blob(fetching, desc, func(done int64) {
			notify(pod.LayerProgress{Digest: desc.Digest.String(), Done: done, Total: desc.Size})
		})
		defer func() { _ = blob.Close() }()
		return s.unpack(ctx, abort, blob, w)
	})
	if err != nil {
		return nil, fmt.Errorf("layer %d of %d: %w", i+1, len(d.layers), err)
	}
	// of a layer that was here nobody has told yet
	notify(pod.LayerProgress{Digest: desc.Digest.String(), Done: desc.Size, Total: desc.Size})
	return l, nil
}

// maker makes a layer that is not there.
type maker func(context.Context, func(pod.LayerProgress)) (*layer, error)

// obtain returns the layer that is made of o: the one that is here, the one that somebody is making, or
// the one that create makes when it is its turn.
func (s *Store) obtain(ctx context.Context, o origin, notify func(pod.LayerProgress), create maker) (*layer, error) {
	for {
		if l := s.sound(o.name()); l != nil {
			return l, l.is(o)
		}
		l, joined, err := s.fetches.do(ctx, o.name(), notify, s.unlessHere(o.name(), create))
		if err == nil {
			return l, l.is(o)
		}
		// another's attempt failed, perhaps for its own reasons: that says nothing about this one
		if !joined || ctx.Err() != nil {
			return nil, err
		}
	}
}

// sound is the layer of that name, nil where it is not here or damaged.
func (s *Store) sound(name string) *layer {
	if l := s.layer(name); l != nil && !s.isDamaged(l.record.Name) {
		return l
	}
	return nil
}

// unlessHere waits for its turn and runs create, unless the attempt before has made the layer since it was looked for.
func (s *Store) unlessHere(name string, create maker) maker {
	return s.unlessSound(name, func(ctx context.Context, notify func(pod.LayerProgress)) (*layer, error) {
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		return create(ctx, notify)
	})
}

// unlessSound is unlessHere for what waits for no turn.
func (s *Store) unlessSound(name string, create maker) maker {
	return func(ctx context.Context, notify func(pod.LayerProgress)) (*layer, error) {
		if l := s.sound(name); l != nil {
			return l, nil
		}
		return create(ctx, notify)
	}
}
