package lifecycle_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"gantry/internal/lifecycle"
)

// spans keeps the steps that ended, with the error of those that failed.
type spans struct {
	mu    sync.Mutex
	ended []string // guarded by mu
}

func (s *spans) trace(ctx context.Context, step string) (context.Context, func(error)) {
	return ctx, func(err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil {
			step += ": " + err.Error()
		}
		s.ended = append(s.ended, step)
	}
}

func TestStepsAreTraced(t *testing.T) {
	w := newWorld(t)
	var s spans
	m := w.start(func(o *lifecycle.Options) { o.Trace = s.trace })
	w.net.fail("Attach", errors.New("no plugin"))
	if _, err := m.RunPod(t.Context(), sandbox("web")); err == nil {
		t.Fatal("a pod came up without its network")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if want := []string{"files", "sandbox create", "network attach: no plugin"}; len(s.ended) < 3 || !slices.Equal(s.ended[:3], want) {
		t.Errorf("%q, want %q first", s.ended, want)
	}
	if !slices.Contains(s.ended, "undo sandbox create") {
		t.Errorf("%q lacks what was undone", s.ended)
	}
}
