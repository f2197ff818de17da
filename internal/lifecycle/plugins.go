package lifecycle

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

// Plugins are told what happens to pods and containers and may change or refuse it (NRI). They are
// called with the pod's key lock held and no other, and bound their own time. They may be told of one
// thing twice, or of the end of what they never heard of.
type Plugins interface {
	// Listening says whether anybody would hear of an event now. Run, Create, Stop of a sandbox and
	// Remove are told all the same: who begins to listen is first shown what there is.
	Listening() bool
	Pod(ctx context.Context, ev *pod.SandboxEvent) error
	Container(ctx context.Context, ev *pod.ContainerEvent) (*pod.Answer, error)
}

// nobody are the plugins of a server that has none.
type nobody struct{}

func (nobody) Listening() bool                              { return false }
func (nobody) Pod(context.Context, *pod.SandboxEvent) error { return nil }
func (nobody) Container(context.Context, *pod.ContainerEvent) (*pod.Answer, error) {
	return &pod.Answer{}, nil
}

func (m *Manager) tellRun(ctx context.Context, p *podEntry) error {
	return m.opts.Plugins.Pod(ctx, &pod.SandboxEvent{At: pod.MomentRun, Sandbox: p.now.Load()})
}

// tellStopped and tellRemoved cannot be refused: what is told has to happen.
func (m *Manager) tellStopped(ctx context.Context, p *podEntry) error {
	m.tellPod(ctx, p, pod.MomentStop)
	return nil
}

func (m *Manager) tellRemoved(ctx context.Context, p *podEntry) error {
	m.tellPod(ctx, p, pod.MomentRemove)
	return nil
}

func (m *Manager) tellPod(ctx context.Context, p *podEntry, at pod.Moment) {
	if err := m.opts.Plugins.Pod(ctx, &pod.SandboxEvent{At: at, Sandbox: p.now.Load()}); err != nil {
		m.log.Warn("a plugin failed", "pod", p.key, "at", at, "error", err)
	}
}

// ask tells plugins of a container and does to others what they want.
func (m *Manager) ask(ctx context.Context, c *containerEntry, at pod.Moment, r *pod.Resources) (*pod.Answer, error) {
	ev := &pod.ContainerEvent{At: at, Sandbox: c.pod.now.Load(), Container: c.now.Load(), Resources: r}
	ev.Image = func() *pod.Image { return m.imageOf(c) }
	answer, err := m.opts.Plugins.Container(ctx, ev)
	if err != nil {
		return nil, err
	}
	for _, u := range m.UpdateContainers(ctx, answer.Updates) {
		if !u.IgnoreFailure {
			return nil, fmt.Errorf("update container %s, as a plugin wants: %w", u.Container, u.Err)
		}
	}
	return answer, nil
}

// tellContainer is ask where nothing can be refused.
func (m *Manager) tellContainer(ctx context.Context, c *containerEntry, at pod.Moment) {
	if _, err := m.ask(ctx, c, at, nil); err != nil {
		m.log.Warn("a plugin failed", "container", c.key, "at", at, "error", err)
	}
}

// tellExit tells plugins behind the calls that a container has ended.
func (m *Manager) tellExit(c *containerEntry) {
	if !m.opts.Plugins.Listening() {
		return
	}
	m.now("tell plugins of the end of container "+string(c.key), func(ctx context.Context) error {
		return m.locked(ctx, c.pod, func(ctx context.Context) error {
			m.tellContainer(ctx, c, pod.MomentStop)
			return nil
		})
	})
}

func (m *Manager) tellContainerRemoved(ctx context.Context, c *containerEntry) error {
	m.tellContainer(ctx, c, pod.MomentRemove)
	return nil
}

// adjust asks plugins what they want changed in a container before anything of it is made.
func (m *Manager) adjust(ctx context.Context, c *containerEntry) error {
	answer, err := m.ask(ctx, c, pod.MomentCreate, nil)
	if err != nil || answer.Adjustment == nil {
		return err
	}
	c.create.Spec, c.create.Adjust = answer.Adjustment.Fold(c.create.Spec)
	c.note(func(is pod.Container) *pod.Container {
		is.Adjustment = answer.Adjustment
		is.Spec.Resources = c.create.Spec.Resources
		return &is
	})
	return nil
}

// imageOf is the container's image, nil when it is there no more.
func (m *Manager) imageOf(c *containerEntry) *pod.Image {
	image, err := m.opts.Images[c.pod.now.Load().Engine].Get(m.ctx, c.now.Load().ImageRef)
	if err != nil {
		return nil
	}
	return image
}

// Everything returns every sandbox and container that there is a record of, also those that no list
// shows, with the image of each container: for plugins that begin to listen.
func (m *Manager) Everything() ([]*pod.Sandbox, []*pod.ContainerEvent) {
	var pods []*pod.Sandbox
	for _, p := range m.index.allPods() {
		pods = append(pods, p.now.Load())
	}
	var containers []*pod.ContainerEvent
	for _, c := range m.index.allContainers() {
		containers = append(containers, &pod.ContainerEvent{
			Sandbox: c.pod.now.Load(), Container: c.now.Load(), Image: func() *pod.Image { return m.imageOf(c) },
		})
	}
	return pods, containers
}

// UpdateContainers changes resources as plugins want it, and returns what failed. A container that has
// ended, or is not there, needs no resources. It takes no pod's lock, so that plugins may ask for it
// while they are being told of something.
func (m *Manager) UpdateContainers(ctx context.Context, updates []pod.ContainerUpdate) (failed []pod.ContainerUpdate) {
	for _, u := range updates {
		c := m.index.containerByKey(pod.Key(u.Container))
		if c == nil {
			continue
		}
		if u.Err = m.resize(ctx, c, &u.Resources); u.Err != nil && !errors.Is(u.Err, errEnded) {
			m.log.Warn("resources that a plugin wants were refused", "container", c.key, "error", u.Err)
			failed = append(failed, u)
		}
	}
	return failed
}

// errEnded says that a container has no process any more, or none yet.
var errEnded = fmt.Errorf("container is neither created nor running: %w", errdefs.ErrFailedPrecondition)

// resize applies new limits to a container and records them.
func (m *Manager) resize(ctx context.Context, c *containerEntry, r *pod.Resources) error {
	unlock, err := m.locks.Lock(ctx, c.key)
	if err != nil {
		return err
	}
	defer unlock()
	if s := c.now.Load().State; s != pod.ContainerCreated && s != pod.ContainerRunning {
		return fmt.Errorf("container %s is %s: %w", c.key.Short(), s, errEnded)
	}
	update := r.PairedWith(&c.now.Load().Spec.Resources)
	if err := c.pod.engine.UpdateContainer(ctx, c.key, &update); err != nil {
		return fmt.Errorf("update container: %w", err)
	}
	return c.change(func(is *pod.Container) (*pod.Container, error) {
		n := *is
		n.Spec.Resources = is.Spec.Resources.With(r)
		return &n, nil
	})
}
