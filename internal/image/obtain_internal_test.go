package image

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"gantry/internal/pod"
)

// A layer may come to be there after it was looked for and before the attempt to make it begins.
func TestLayerIsNotMadeTwiceByAttemptsOneAfterTheOther(t *testing.T) {
	s, err := Open(Options{Root: filepath.Join(t.TempDir(), "root"), ParallelLayers: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	o := origin{DiffID: digest.Digest("sha256:" + strings.Repeat("ab", 32))}
	for name, unless := range map[string]func(string, maker) maker{"a layer": s.unlessHere, "a variant of one": s.unlessSound} {
		t.Run(name, func(t *testing.T) { checkMadeOnce(t, s, o, unless) })
	}
}

func checkMadeOnce(t *testing.T, s *Store, o origin, unless func(string, maker) maker) {
	t.Helper()
	s.mu.Lock()
	clear(s.layers)
	clear(s.damaged)
	s.mu.Unlock()
	made := 0
	attempt := unless(o.name(), func(context.Context, func(pod.LayerProgress)) (*layer, error) {
		made++
		l := layerRecord{Name: o.name(), origin: o}.layer()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.layers[o.name()] = l
		return l, nil
	})
	for range 2 { // as by two who both found nothing
		if l, err := attempt(t.Context(), func(pod.LayerProgress) {}); err != nil || l.is(o) != nil {
			t.Errorf("%+v, %v", l, err)
		}
	}
	if made != 1 {
		t.Errorf("the layer was made %d times", made)
	}
	if err := s.markDamaged(o.name()); err != nil {
		t.Fatal(err)
	}
	if _, err := attempt(t.Context(), func(pod.LayerProgress) {}); err != nil || made != 2 {
		t.Errorf("one that is damaged was made anew %d times, %v; want once", made-1, err)
	}
}
