package native

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

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

// named returns the runtime of a handler, and the handler's name where a pod names none.
func (h *handlers) named(handler string) (r ociruntime.Runtime, name string, err error) {
	name = cmp.Or(handler, h.standardName)
	r, ok := h.runtimes[name]
	if !ok {
		return r, name, fmt.Errorf("runtime handler %q is not configured: %w", name, errdefs.ErrInvalidArgument)
	}
	return r, name, nil
}

// runtime returns how to call the runtime of a handler.
func (e *Engine) runtime(ctx context.Context, handler string) (keeper.Runtime, error) {
	r, handler, err := e.handlers.Load().named(handler)
	if err != nil {
		return keeper.Runtime{}, err
	}
	root := filepath.Join(e.opts.StateDir, "runtimes", handler)
	args := ociruntime.GlobalArgs(root, e.opts.CgroupDriver == cgroup.Systemd)
	f, err := e.features(ctx, r.Path)
	return keeper.Runtime{Path: r.Path, Args: append(args, r.Args...), Clones: err == nil && f.Direct}, nil
}

// directly says of a container with that spec what the keeper may do without a process of its OCI runtime: its
// start, if no hook follows; its removal, if no hook follows and there is no scope of systemd's and no
// RDT group to remove. Arguments of the operator's own may change what the runtime does.
func (e *Engine) directly(ctx context.Context, handler string, spec *specs.Spec) (start, remove bool) {
	r, _, err := e.handlers.Load().named(handler)
	if err != nil || len(r.Args) > 0 {
		return false, false
	}
	if f, err := e.features(ctx, r.Path); err != nil || !f.Direct {
		return false, false
	}
	hooks := cmp.Or(spec.Hooks, &specs.Hooks{})
	start = len(hooks.Poststart) == 0
	remove = len(hooks.Poststop) == 0 && e.opts.CgroupDriver != cgroup.Systemd && spec.Linux.IntelRdt == nil
	return start, remove
}
