package lifecycle

import (
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

// handlers are what pods may name. They are replaced as a whole, never changed.
type handlers struct {
	engines  map[string]string // by handler; "" is the default
	features map[string]pod.HandlerFeatures
}

// SetHandlers replaces the runtime handlers for what is created from now on. Pods stay on their engine.
func (m *Manager) SetHandlers(engines map[string]string, features map[string]pod.HandlerFeatures) error {
	if _, ok := engines[""]; !ok {
		return fmt.Errorf("no default runtime handler: %w", errdefs.ErrInvalidArgument)
	}
	for _, h := range slices.Sorted(maps.Keys(engines)) {
		name := engines[h]
		if m.opts.Engines[name] == nil || m.opts.Images[name] == nil {
			return fmt.Errorf("runtime handler %q: no engine %q with an image store: %w", h, name, errdefs.ErrInvalidArgument)
		}
	}
	m.handlers.Store(&handlers{maps.Clone(engines), maps.Clone(features)})
	return nil
}

// engineOf returns the engine's name for a handler.
func (m *Manager) engineOf(handler string) (string, error) {
	name, ok := m.handlers.Load().engines[handler]
	if !ok {
		return "", fmt.Errorf("runtime handler %q is not configured: %w", handler, errdefs.ErrInvalidArgument)
	}
	return name, nil
}

// defaultEngine is the name of the engine of pods that name no handler.
func (m *Manager) defaultEngine() string { return m.handlers.Load().engines[""] }
