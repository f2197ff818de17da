package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/image/tree"
	"gantry/internal/image/unpack"
)

// layer is a tree in layers/. It never changes.
type layer struct {
	record layerRecord
}

func (l layerRecord) layer() *layer { return &layer{record: l} }

// is reports whether l is made of o; names are shorter than what they stand for.
func (l *layer) is(o origin) error {
	if have, want := l.record.identity(), o.identity(); have != want {
		return fmt.Errorf("layers %s and %s have the same short name: %w", have, want, errdefs.ErrFailedPrecondition)
	}
	return nil
}

var layerNames = regexp.MustCompile(`^[0-9a-f]{16}$`)

func checkName(name string) error {
	if !layerNames.MatchString(name) {
		return fmt.Errorf("layer name %q: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (s *Store) layerPath(name string) string { return filepath.Join(s.dir(layersDir), name) }

func (s *Store) layer(name string) *layer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.layers[name]
}

// treePath is where it is remembered what a layer's directory must be: see package tree.
func (s *Store) treePath(name string) string { return filepath.Join(s.dir(treesDir), name) }

// staged is a layer in the making: its directory and the record of it.
type staged struct{ top string }

func (s *Store) stage(what string) (staged, error) {
	top, err := os.MkdirTemp(s.dir(stagingDir), what+"-")
	if err != nil {
		return staged{}, fmt.Errorf("stage %s: %w", what, err)
	}
	st := staged{top}
	if err := os.Mkdir(st.dir(), 0o755); err != nil {
		return staged{}, errors.Join(fmt.Errorf("stage %s: %w", what, err), st.remove())
	}
	// the umask must not matter
	if err := os.Chmod(st.dir(), 0o755); err != nil {
		return staged{}, errors.Join(fmt.Errorf("stage %s: %w", what, err), st.remove())
	}
	return st, nil
}

func (st staged) dir() string    { return filepath.Join(st.top, "dir") }
func (st staged) record() string { return filepath.Join(st.top, "record") }
func (st staged) remove() error  { return os.RemoveAll(st.top) }

// unpack makes the layer w of its blob. The blob's own end must tell that it was whole; abort makes
// reads of it return soon.
func (s *Store) unpack(ctx context.Context, abort func(), blob io.Reader, w *wanted) (_ *layer, err error) {
	st, err := s.stage("layer")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, st.remove()) }()
	rec, err := tree.Create(st.record())
	if err != nil {
		return nil, err
	}
	l := layerRecord{Name: w.name(), origin: w.origin}
	sum, err := stream(ctx, abort, blob, func(blob io.Reader) (*reading, error) {
		r, broken := w.read(ctx, s.windows, blob)
		l.AsFile = broken == nil && r.asFile
		return r, broken
	}, func(tar io.Reader) (unpack.Summary, error) {
		verified := newVerifier(tar, w.DiffID)
		content, broken := unpack.Layer(ctx, st.dir(), verified, s.opts.Limits, rec)
		if broken != nil {
			return content, broken
		}
		l.DiffID, broken = verified.end()
		return content, broken
	})
	if err != nil {
		rec.Abort()
		return nil, err
	}
	if err := rec.Finish(st.dir(), sum.Xattrs); err != nil {
		return nil, err
	}
	l.Bytes, l.Root, l.Implicit = sum.Bytes, sum.Root, sum.Implicit
	made := l.layer()
	return made, s.install(ctx, made, st)
}

// install gives a finished layer its place, or mends with it the damaged one that has the place:
// containers may use that.
func (s *Store) install(ctx context.Context, l *layer, st staged) error {
	s.mu.Lock()
	err := os.Rename(st.record(), s.treePath(l.record.Name))
	if err == nil {
		err = os.Rename(st.dir(), s.layerPath(l.record.Name))
	}
	if err == nil {
		s.layers[l.record.Name] = l
		s.mended(l.record.Name)
	}
	s.mu.Unlock()
	if errors.Is(err, os.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		return s.mendWith(ctx, l, st)
	}
	if err != nil {
		return fmt.Errorf("install layer: %w", err)
	}
	s.sync.dirty()
	return nil
}

// hold keeps layers from being collected, whether they are there yet or not.
func (s *Store) hold(names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range names {
		s.holds[n]++
	}
}

// release gives up a hold and removes what nothing else refers to.
func (s *Store) release(names []string) {
	s.mu.Lock()
	for _, n := range names {
		if s.holds[n]--; s.holds[n] == 0 {
			delete(s.holds, n)
		}
	}
	s.mu.Unlock()
	if err := s.collect(); err != nil {
		s.log.Warn("unused layers stay until the next start", slog.Any("error", err))
	}
}

// collect removes the layers that no image, no container and no pull refers to.
func (s *Store) collect() error {
	s.mu.Lock()
	used := make(map[string]bool, len(s.layers))
	for _, r := range s.index.byID {
		for _, l := range r.Layers {
			used[l.Name] = true
		}
	}
	for _, c := range s.containers {
		for _, l := range c.Layers {
			used[l.Name] = true
		}
	}
	var gone []string
	var errs []error
	for name := range s.layers {
		if used[name] || s.holds[name] > 0 {
			continue
		}
		// renamed under the lock, so that a new pull of the layer finds its place free
		tmp, err := s.retire(s.layerPath(name))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		delete(s.layers, name)
		delete(s.damaged, name)
		errs = append(errs, removeFiles(s.treePath(name), s.damagePath(name)))
		gone = append(gone, tmp)
	}
	s.mu.Unlock()
	if len(gone) > 0 {
		s.opts.Hook("image/layers retired")
	}
	for _, tmp := range gone {
		errs = append(errs, os.RemoveAll(tmp))
	}
	return errors.Join(errs...)
}

func removeFiles(paths ...string) error {
	var errs []error
	for _, p := range paths {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// retire moves path to where the next start removes it at the latest.
func (s *Store) retire(path string) (string, error) {
	dir, err := os.MkdirTemp(s.dir(stagingDir), "gone-")
	if err != nil {
		return "", fmt.Errorf("retire %s: %w", filepath.Base(path), err)
	}
	if err := os.Rename(path, filepath.Join(dir, "x")); err != nil {
		return "", fmt.Errorf("retire %s: %w", filepath.Base(path), err)
	}
	return dir, nil
}

// discard removes path so that a crash leaves it where it is or in staging, never in part.
func (s *Store) discard(path string) error {
	tmp, err := s.retire(path)
	if err != nil {
		return err
	}
	return os.RemoveAll(tmp)
}
