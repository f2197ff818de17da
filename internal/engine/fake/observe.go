package fake

import (
	"context"
	"maps"
	"slices"
	"time"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// watcher queues what one Watch has not delivered yet, so that a slow reader delays only itself.
type watcher struct {
	queue []engine.Event // guarded by Engine.mu
	wake  chan struct{}
	lost  chan struct{} // closed by LoseWatches
}

// List implements engine.Observer.
func (e *Engine) List(ctx context.Context) (engine.Inventory, error) {
	return call(ctx, e, "List", func() (engine.Inventory, error) {
		var inv engine.Inventory
		for _, key := range slices.Sorted(maps.Keys(e.sandboxes)) {
			s := e.sandboxes[key]
			inv.Sandboxes = append(inv.Sandboxes, engine.SandboxInfo{Key: key, ID: s.made.ID, NetNS: s.made.NetNS, Ready: s.ready})
		}
		for _, key := range slices.Sorted(maps.Keys(e.containers)) {
			c := e.containers[key]
			info := engine.ContainerInfo{Key: key, ID: c.created.ID, State: c.state, CgroupPath: c.created.CgroupPath, Exit: c.exit}
			if c.state != pod.ContainerExited {
				info.Pid = c.created.Pid
			}
			inv.Containers = append(inv.Containers, info)
		}
		return inv, nil
	})
}

// Watch implements engine.Observer.
func (e *Engine) Watch(ctx context.Context) (<-chan engine.Event, error) {
	w, err := call(ctx, e, "Watch", func() (*watcher, error) {
		w := &watcher{wake: make(chan struct{}, 1), lost: make(chan struct{})}
		e.watchers[w] = struct{}{}
		for key, c := range e.containers {
			if c.exit != nil && !c.reported {
				c.reported = true
				w.add(engine.Event{Key: key, Exit: c.exit})
			}
		}
		return w, nil
	})
	if err != nil {
		return nil, err
	}
	out := make(chan engine.Event)
	go e.deliver(ctx, w, out)
	return out, nil
}

// LoseWatches closes the channel of every Watch, as when the connection to the engine breaks.
func (e *Engine) LoseWatches() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for w := range e.watchers {
		delete(e.watchers, w)
		close(w.lost)
	}
}

// EndSandbox ends what a sandbox consists of, as when its pause process is killed, and tells every
// watcher.
func (e *Engine) EndSandbox(key pod.Key) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s := e.sandboxes[key]; s != nil {
		s.ready = false
	}
	for w := range e.watchers {
		w.add(engine.Event{Key: key, Exit: &pod.Exit{Code: 128 + sigkill, At: time.Now()}})
	}
}

// Status implements engine.Observer.
func (e *Engine) Status(ctx context.Context) error {
	return e.act(ctx, "Status", func() error { return nil })
}

func (e *Engine) deliver(ctx context.Context, w *watcher, out chan<- engine.Event) {
	defer close(out)
	defer func() {
		e.mu.Lock()
		delete(e.watchers, w)
		e.mu.Unlock()
	}()
	for {
		e.mu.Lock()
		queue := w.queue
		w.queue = nil
		e.mu.Unlock()
		for _, ev := range queue {
			select {
			case out <- ev:
			case <-ctx.Done():
				return
			case <-w.lost:
				return
			}
		}
		if len(queue) > 0 {
			continue
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		case <-w.lost:
			return
		}
	}
}

// add queues an event. Engine.mu is held.
func (w *watcher) add(ev engine.Event) {
	w.queue = append(w.queue, ev)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// report tells every watcher of an exit. Engine.mu is held.
func (e *Engine) report(c *container) {
	for w := range e.watchers {
		c.reported = true
		w.add(engine.Event{Key: c.spec.Key, Exit: c.exit})
	}
}
