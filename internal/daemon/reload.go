package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"gantry/internal/config"
	"gantry/internal/observe"
	"gantry/internal/ociruntime"
	"gantry/internal/pod"
)

// reloader replaces the options of a running server, all of those that can be or none.
type reloader struct {
	manager handlerSetter
	plugins *plugins
	engine  runtimeSetter
	load    Load
	level   *slog.LevelVar
	log     *slog.Logger
	start   *config.Options

	last *config.Options // that were applied, as far as they can be; reload's

	mu      sync.Mutex
	waiting []string // options that a restart would change; guarded by mu
	broken  error    // why the last reload changed nothing; guarded by mu
}

// handlerSetter is the slice of lifecycle that a reload needs.
type handlerSetter interface {
	SetHandlers(engines map[string]string, features map[string]pod.HandlerFeatures) error
	Status(ctx context.Context) (*pod.NodeStatus, error)
}

// runtimeSetter is the slice of the engines that a reload needs.
type runtimeSetter interface {
	SetRuntimes(runtimes map[string]ociruntime.Runtime, standard string) error
	Features(ctx context.Context) map[string]pod.HandlerFeatures
}

func (s *server) newReloader(p *parts) *reloader {
	return &reloader{manager: p.manager, plugins: p.plugins, engine: p, load: s.load, level: s.level, log: s.log, start: s.opts, last: s.opts}
}

// Status is the manager's, and tells of options that are not in force.
func (r *reloader) Status(ctx context.Context) (*pod.NodeStatus, error) {
	st, err := r.manager.Status(ctx)
	if err != nil {
		return nil, err
	}
	r.plugins.status(st.Verbose)
	r.mu.Lock()
	defer r.mu.Unlock()
	st.Configuration = r.broken
	switch {
	case r.broken != nil:
		st.Verbose["configuration"] = r.broken.Error()
	case len(r.waiting) > 0:
		st.Verbose["configuration"] = "a restart is needed for " + strings.Join(r.waiting, ", ")
	default:
		st.Verbose["configuration"] = "in force"
	}
	return st, nil
}

// reload reads the options and applies them. After an error the old ones stay. It is called once at a time. Status
// does not wait for it: it may ask a runtime that hangs.
func (r *reloader) reload(ctx context.Context) {
	o, err := r.load()
	if err == nil {
		err = r.apply(ctx, o)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.broken = fmt.Errorf("the options before the last reload are in force: %w", err)
		r.log.Error("configuration is not reloaded", "error", err)
		return
	}
	applied := slices.DeleteFunc(config.Changed(r.last, o), func(key string) bool { return !config.Reloadable(key) })
	waiting := slices.DeleteFunc(config.Changed(r.start, o), config.Reloadable)
	r.last, r.waiting, r.broken = o, waiting, nil
	r.log.Info("configuration is reloaded", "changed", applied)
	if len(waiting) > 0 {
		r.log.Warn("options have changed that need a restart", "options", waiting)
	}
}

// apply changes nothing when it fails.
func (r *reloader) apply(ctx context.Context, o *config.Options) error {
	level, err := observe.ParseLevel(o.Log.Level)
	if err != nil {
		return err
	}
	if err := r.engine.SetRuntimes(runtimesOf(o), o.Runtime.Default); err != nil {
		return err
	}
	if err := r.manager.SetHandlers(handlersOf(o, r.engine.Features(ctx))); err != nil {
		return err
	}
	r.level.Set(level)
	return nil
}
