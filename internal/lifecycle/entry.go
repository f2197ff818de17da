package lifecycle

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// entry is one record: its snapshot in memory and its file in the journal, changed together.
type entry[T any] struct {
	put func(*T) error
	now atomic.Pointer[T] // never nil; what it points to never changes
	// changed is told what a snapshot was and what it has become, nil when it is forgotten, in the
	// order in which that happens.
	changed func(was, is *T)

	mu   sync.Mutex
	gone bool // the record is deleted for good; guarded by mu
}

// change replaces the snapshot by what next makes of it, in the journal first. Next returns nil to
// leave all as it is, and must not call the engine.
func (e *entry[T]) change(next func(*T) (*T, error)) error {
	return e.replace(next, func(err error) error { return err })
}

// mark is change for what is true, or has to go on, whatever the disk says: an exit, or the giving
// back of what a full disk is full of. Without the record a crash here is still found, by what the
// engine has or has not.
func (e *entry[T]) mark(log *slog.Logger, next func(*T) (*T, error)) error {
	return e.replace(next, func(err error) error {
		log.Error("the journal could not be written", "error", err)
		return nil
	})
}

// replace is change and mark; unwritten says what follows when the journal could not be written.
func (e *entry[T]) replace(next func(*T) (*T, error), unwritten func(error) error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return fmt.Errorf("it was removed meanwhile: %w", errdefs.ErrNotFound)
	}
	n, err := next(e.now.Load())
	if err != nil || n == nil {
		return err
	}
	if err := e.put(n); err != nil {
		if err = unwritten(err); err != nil {
			return err
		}
	}
	e.changed(e.now.Swap(n), n)
	return nil
}

// note changes the snapshot alone: for what recovery finds out by itself.
func (e *entry[T]) note(next func(T) *T) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.now.Store(next(*e.now.Load()))
}

// forget ends the record: forget deletes it from the journal, and no later change brings it back.
func (e *entry[T]) forget(del func() error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return nil
	}
	if err := del(); err != nil {
		return err
	}
	e.gone = true
	e.changed(e.now.Load(), nil)
	return nil
}

// activity is the step that is being done, for people who ask what hangs. Its zero value is rest.
type activity struct {
	step atomic.Pointer[activeStep]
}

type activeStep struct {
	name  string
	began time.Time
}

func (a *activity) act(step string) { a.step.Store(&activeStep{step, time.Now()}) }
func (a *activity) rest()           { a.step.Store(nil) }

// said is what Status says of a thing that is at a step, or that no list shows; "" is nothing.
func (a *activity) said(state, last string, visible bool) string {
	if s := a.step.Load(); s != nil {
		return fmt.Sprintf("%s, at step %q for %v", state, s.name, time.Since(s.began).Round(time.Millisecond))
	}
	if visible {
		return ""
	}
	return fmt.Sprintf("%s, last at step %q, waits to be tried again", state, last)
}

// podEntry is a sandbox.
type podEntry struct {
	entry[pod.Sandbox]
	activity
	key    pod.Key
	engine engine.Engine
	files  engine.Files
	// ending ends when StopPod or RemovePod begins: whatever is being made in the pod then gives up,
	// so that a pod in which something hangs can still be stopped.
	ending  context.Context
	end     context.CancelCauseFunc
	oldBoot bool // its record is from before the machine last started
}

func (m *Manager) newPodEntry(sb *pod.Sandbox) *podEntry {
	p := &podEntry{key: sb.Spec.Key, engine: m.opts.Engines[sb.Engine], files: m.podFiles(sb.Spec.Key)}
	p.put = m.journal.PutPod
	p.changed = func(was, is *pod.Sandbox) { m.podChanged(p, was, is) }
	p.now.Store(sb)
	p.ending, p.end = context.WithCancelCause(context.Background())
	return p
}

func (p *podEntry) begin(step string) {
	p.act(step)
	p.note(func(sb pod.Sandbox) *pod.Sandbox { sb.Step = step; return &sb })
}

// while returns ctx, ended too when the pod is being stopped.
func (p *podEntry) while(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(p.ending, func() { cancel(context.Cause(p.ending)) })
	return ctx, func() { stop(); cancel(nil) }
}

// stopping is called when the pod's end begins.
func (p *podEntry) stopping() {
	p.end(fmt.Errorf("pod %s is being stopped: %w", p.key.Short(), errdefs.ErrFailedPrecondition))
}

// seen is the sandbox as it is now, nil where clients do not know of it yet or any more. What is shown is one look:
// between two it may have begun to be removed.
func (p *podEntry) seen() *pod.Sandbox {
	if sb := p.now.Load(); sb.State == pod.SandboxReady || sb.State == pod.SandboxNotReady {
		return sb
	}
	return nil
}

func (p *podEntry) id() string { return p.now.Load().ID }

// name is what the client calls the pod and its attempt. It never changes.
func (p *podEntry) name() pod.Metadata { return p.now.Load().Spec.Metadata }

// containerEntry is a container.
type containerEntry struct {
	entry[pod.Container]
	activity
	key     pod.Key
	pod     *podEntry
	create  *engine.Create // while it is being created
	source  *source        // while it is being created from a checkpoint
	exited  chan struct{}  // closed when the container has ended
	once    sync.Once      // closes exited
	oldBoot bool           // its record is from before the machine last started
	// starting says that the engine was asked to start it, and did not refuse: its exit may be seen before the answer.
	starting atomic.Bool
}

func (m *Manager) newContainerEntry(p *podEntry, c *pod.Container) *containerEntry {
	e := &containerEntry{key: c.Spec.Key, pod: p, exited: make(chan struct{})}
	e.put = m.journal.PutContainer
	e.changed = func(was, is *pod.Container) { m.containerChanged(e, was, is) }
	e.now.Store(c)
	if c.State == pod.ContainerExited {
		e.hasExited()
	}
	return e
}

func (c *containerEntry) begin(step string) {
	c.act(step)
	c.note(func(s pod.Container) *pod.Container { s.Step = step; return &s })
}

func (c *containerEntry) hasExited() { c.once.Do(func() { close(c.exited) }) }

// seen is the container as it is now, nil where clients do not know of it yet or any more. What is shown is one look:
// between two it may have begun to be removed.
func (c *containerEntry) seen() *pod.Container {
	is := c.now.Load()
	switch is.State {
	case pod.ContainerCreated, pod.ContainerRunning, pod.ContainerExited:
		return is
	}
	return nil
}

func (c *containerEntry) id() string { return c.now.Load().ID }

// sharesPID says whether processes of the container outlive its main process: only the first
// process of a PID namespace takes the others with it.
func (c *containerEntry) sharesPID() bool {
	pid := c.now.Load().Spec.Namespaces.PID
	return pid != pod.NamespaceContainer && pid != ""
}
