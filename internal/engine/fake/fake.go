// Package fake is an engine in memory that keeps the whole contract of package engine, for testing
// what is left behind. Faults make calls fail, hang or lose their answer; Everything lists what is
// there. Its containers run the words of process.go instead of programs.
package fake

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// Engine is an engine.Engine in memory.
type Engine struct {
	faults faults

	mu         sync.Mutex
	sandboxes  map[pod.Key]*sandbox   // guarded by mu
	containers map[pod.Key]*container // guarded by mu
	watchers   map[*watcher]struct{}  // guarded by mu
}

type sandbox struct {
	made    engine.Made
	ready   bool
	started bool
}

type container struct {
	spec     pod.ContainerSpec
	created  engine.Created
	state    pod.ContainerState
	exit     *pod.Exit
	reported bool          // some watcher was told of the exit
	ended    chan struct{} // closed when it exits
	execs    int           // processes of Exec that run now
	orphans  int           // children that outlived the main process
	paused   bool
}

var _ engine.Engine = (*Engine)(nil)

// New returns an engine with nothing in it.
func New(opts ...Option) *Engine {
	e := &Engine{
		sandboxes:  make(map[pod.Key]*sandbox),
		containers: make(map[pod.Key]*container),
		watchers:   make(map[*watcher]struct{}),
	}
	for _, o := range opts {
		o(&e.faults)
	}
	return e
}

// Faults are the engine's faults, to be added and lifted while it runs.
func (e *Engine) Faults() Faults { return Faults{&e.faults} }

// Everything lists what is there, sorted: "sandbox KEY", "container KEY", "exec in KEY", "child in KEY".
func (e *Engine) Everything() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []string
	for k := range e.sandboxes {
		all = append(all, "sandbox "+string(k))
	}
	for k, c := range e.containers {
		all = append(all, "container "+string(k))
		for range c.execs {
			all = append(all, "exec in "+string(k))
		}
		for range c.orphans {
			all = append(all, "child in "+string(k))
		}
	}
	slices.Sort(all)
	return all
}

// CreateSandbox implements engine.Sandboxes.
func (e *Engine) CreateSandbox(ctx context.Context, spec *pod.SandboxSpec, _ engine.Files) (engine.Made, error) {
	return call(ctx, e, "CreateSandbox", func() (engine.Made, error) {
		if s := e.sandboxes[spec.Key]; s != nil {
			return s.made, nil
		}
		s := &sandbox{made: engine.Made{ID: "sb-" + string(spec.Key), CgroupPath: cgroupOf(spec)}, ready: true}
		if !spec.HostNetwork() {
			s.made.NetNS = "/netns/" + string(spec.Key)
		}
		e.sandboxes[spec.Key] = s
		return s.made, nil
	})
}

// cgroupOf is the client's parent, else one of the sandbox's own.
func cgroupOf(spec *pod.SandboxSpec) string {
	if spec.CgroupParent != "" {
		return spec.CgroupParent
	}
	return "/fake/" + string(spec.Key)
}

// StartSandbox implements engine.Sandboxes.
func (e *Engine) StartSandbox(ctx context.Context, key pod.Key) error {
	return e.act(ctx, "StartSandbox", func() error {
		s := e.sandboxes[key]
		if s == nil {
			return notFound("sandbox", key)
		}
		s.started = true
		return nil
	})
}

// UpdateSandbox implements engine.Sandboxes.
func (e *Engine) UpdateSandbox(ctx context.Context, key pod.Key, _ *pod.Resources) error {
	return e.act(ctx, "UpdateSandbox", func() error {
		if e.sandboxes[key] == nil {
			return notFound("sandbox", key)
		}
		return nil
	})
}

// StopSandbox implements engine.Sandboxes.
func (e *Engine) StopSandbox(ctx context.Context, key pod.Key) error {
	return e.act(ctx, "StopSandbox", func() error {
		if s := e.sandboxes[key]; s != nil {
			s.ready = false
		}
		return nil
	})
}

// RemoveSandbox implements engine.Sandboxes.
func (e *Engine) RemoveSandbox(ctx context.Context, key pod.Key) error {
	return e.act(ctx, "RemoveSandbox", func() error {
		delete(e.sandboxes, key)
		return nil
	})
}

// CreateContainer implements engine.Containers.
func (e *Engine) CreateContainer(ctx context.Context, req *engine.Create) (engine.Created, error) {
	return call(ctx, e, "CreateContainer", func() (engine.Created, error) {
		if c := e.containers[req.Spec.Key]; c != nil {
			return c.created, nil
		}
		if s := e.sandboxes[req.Sandbox.Spec.Key]; s == nil || !s.ready {
			return engine.Created{}, notFound("sandbox", req.Sandbox.Spec.Key)
		}
		if req.Image == nil {
			return engine.Created{}, fmt.Errorf("container %s has no image: %w", req.Spec.Key, errdefs.ErrInvalidArgument)
		}
		c := &container{
			spec:  *req.Spec,
			state: pod.ContainerCreated,
			ended: make(chan struct{}),
			created: engine.Created{
				ID:         "c-" + string(req.Spec.Key),
				Pid:        len(e.containers) + 1<<22 + 1, // beyond the kernel's pid_max: no process has it
				CgroupPath: cgroupOf(&req.Sandbox.Spec) + "/" + string(req.Spec.Key),
				StopSignal: req.Image.Config.StopSignal,
			},
		}
		e.containers[req.Spec.Key] = c
		return c.created, nil
	})
}

// StartContainer implements engine.Containers.
func (e *Engine) StartContainer(ctx context.Context, key pod.Key) (engine.Started, error) {
	return call(ctx, e, "StartContainer", func() (engine.Started, error) {
		c := e.containers[key]
		switch {
		case c == nil:
			return engine.Started{}, notFound("container", key)
		case c.state == pod.ContainerCreated:
			c.state = pod.ContainerRunning
			e.begin(c)
		}
		return engine.Started{Pid: c.created.Pid, CgroupPath: c.created.CgroupPath}, nil
	})
}

// SignalContainer implements engine.Containers.
func (e *Engine) SignalContainer(ctx context.Context, key pod.Key, s engine.Signal) error {
	return e.act(ctx, "SignalContainer", func() error {
		number, err := signalNumber(s.Name)
		if err != nil {
			return err
		}
		c := e.containers[key]
		switch {
		case c == nil:
			return notFound("container", key)
		case c.state == pod.ContainerCreated && number == sigkill, c.state == pod.ContainerRunning:
			e.signal(c, number)
		}
		if s.All && number == sigkill {
			c.orphans = 0
		}
		return nil
	})
}

// UpdateContainer implements engine.Containers.
func (e *Engine) UpdateContainer(ctx context.Context, key pod.Key, r *pod.Resources) error {
	return e.act(ctx, "UpdateContainer", func() error {
		c := e.containers[key]
		if c == nil {
			return notFound("container", key)
		}
		if c.state == pod.ContainerExited {
			return fmt.Errorf("container %s has ended: %w", key.Short(), errdefs.ErrFailedPrecondition)
		}
		c.spec.Resources = *r
		return nil
	})
}

// RemoveContainer implements engine.Containers.
func (e *Engine) RemoveContainer(ctx context.Context, key pod.Key) error {
	return e.act(ctx, "RemoveContainer", func() error {
		if c := e.containers[key]; c != nil {
			if c.state == pod.ContainerRunning {
				e.signal(c, sigkill)
			}
			if c.state == pod.ContainerRunning {
				return fmt.Errorf("container %s does not end: %w", key.Short(), errdefs.ErrUnavailable)
			}
			delete(e.containers, key)
		}
		return nil
	})
}

// act is call for what returns nothing.
func (e *Engine) act(ctx context.Context, method string, do func() error) error {
	_, err := call(ctx, e, method, func() (struct{}, error) { return struct{}{}, do() })
	return err
}

// call runs do under e.mu, with the faults of method before and after it.
func call[T any](ctx context.Context, e *Engine, method string, do func() (T, error)) (T, error) {
	var zero T
	if err := e.faults.before(ctx, method); err != nil {
		return zero, err
	}
	e.mu.Lock()
	v, err := do()
	e.mu.Unlock()
	if err == nil {
		err = e.faults.after(ctx, method)
	}
	if err != nil {
		return zero, err
	}
	return v, nil
}

func notFound(noun string, key pod.Key) error {
	return fmt.Errorf("%s %s: %w", noun, key.Short(), errdefs.ErrNotFound)
}
