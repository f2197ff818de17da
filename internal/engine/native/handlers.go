package native

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"

	"github.com/containerd/errdefs"

	"gantry/internal/cgroup"
	"gantry/internal/keeper"
	"gantry/internal/ociruntime"
	"gantry/internal/pod"
)

// handlers are the OCI runtimes. They are replaced as a whole, never changed.
type handlers struct {
	runtimes     map[string]ociruntime.Runtime
	standardName string // the handler of pods that name none
}

func (h *handlers) standard() ociruntime.Runtime { return h.runtimes[h.standardName] }

// SetRuntimes replaces the runtimes by handler, for what is created from now on. Containers keep the
// runtime that they were created with.
func (e *Engine) SetRuntimes(runtimes map[string]ociruntime.Runtime, standard string) error {
	if _, ok := runtimes[standard]; !ok {
		return fmt.Errorf("default runtime %q is not configured: %w", standard, errdefs.ErrInvalidArgument)
	}
	e.handlers.Store(&handlers{maps.Clone(runtimes), standard})
	return nil
}

// Features tells what each handler offers beyond the base; one whose binary is unusable is left out.
func (e *Engine) Features(ctx context.Context) map[string]pod.HandlerFeatures {
	runtimes := e.handlers.Load().runtimes
	all := make(map[string]pod.HandlerFeatures, len(runtimes))
	for name, r := range runtimes {
		if f, err := e.features(ctx, r.Path); err == nil {
			all[name] = pod.HandlerFeatures{
				RecursiveReadOnlyMounts: f.RecursiveReadOnly(),
				UserNamespaces:          f.UserNamespaces && e.mapsIDs() == nil,
			}
		}
	}
	return all
}

// runtime returns how to call the runtime of a handler.
func (e *Engine) runtime(handler string) (keeper.Runtime, error) {
	h := e.handlers.Load()
	if handler == "" {
		handler = h.standardName
	}
	r, ok := h.runtimes[handler]
	if !ok {
		return keeper.Runtime{}, fmt.Errorf("runtime handler %q is not configured: %w", handler, errdefs.ErrInvalidArgument)
	}
	root := filepath.Join(e.opts.StateDir, "runtimes", handler)
	args := ociruntime.GlobalArgs(root, e.opts.CgroupDriver == cgroup.Systemd)
	return keeper.Runtime{Path: r.Path, Args: append(args, r.Args...)}, nil
}
