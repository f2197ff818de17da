package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// observe keeps memory true: it watches an engine, then lists it, so that nothing falls between, and
// does both again when the watch breaks. First is called after the first try, whatever came of it,
// with the work that it gave.
func (m *Manager) observe(ctx context.Context, name string, first func([]<-chan struct{})) {
	const least, most = 100 * time.Millisecond, 10 * time.Second
	for pause := least; ; pause = min(2*pause, most) {
		began := time.Now()
		err := m.observeOnce(ctx, name, first)
		first(nil)
		if ctx.Err() != nil {
			return
		}
		m.log.Warn("lost sight of the engine, looking again", "engine", name, "error", err)
		if time.Since(began) > time.Minute {
			pause = least
		}
		if !m.pause(pause) {
			return
		}
	}
}

// observeOnce handles events until the watch ends.
func (m *Manager) observeOnce(ctx context.Context, name string, first func([]<-chan struct{})) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := m.opts.Engines[name].Watch(ctx)
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	work, err := m.reconcile(ctx, name)
	if err != nil {
		return err
	}
	first(work)
	for ev := range events {
		m.event(ev)
	}
	return errors.New("the watch ended")
}

// event handles one exit or OOM kill.
func (m *Manager) event(ev engine.Event) {
	if ev.LogDropped > 0 {
		m.logDropped(ev.Key, ev.LogDropped)
		return
	}
	if ev.Exit == nil {
		m.log.Info("the kernel killed a process of the container that was out of memory", "container", ev.Key)
		return
	}
	if c := m.index.containerByKey(ev.Key); c != nil {
		m.exited(c, *ev.Exit)
		return
	}
	// What an engine runs for the sandbox itself has ended: the sandbox has no namespaces any more.
	// One that is being stopped or removed was told to end.
	if p := m.index.podByKey(ev.Key); p != nil && p.ending.Err() == nil {
		m.lost(p)
	}
}

// exited records how a container ended, the first time it is told.
func (m *Manager) exited(c *containerEntry, exit pod.Exit) {
	if exit.At.IsZero() {
		exit.At = time.Now()
	}
	ended := false
	record := func(is *pod.Container) (*pod.Container, error) {
		if is.State != pod.ContainerCreated && is.State != pod.ContainerRunning {
			return nil, nil
		}
		n, err := is.Exited(exit)
		if err != nil {
			return nil, err
		}
		if n.StartedAt.IsZero() && is.State == pod.ContainerRunning {
			n.StartedAt = n.CreatedAt
		}
		ended = true
		return n, nil
	}
	if err := c.mark(m.log, record); err != nil && !errdefs.IsNotFound(err) {
		m.log.Error("an exit was not taken", "container", c.key, "error", err)
	}
	if c.now.Load().State == pod.ContainerExited {
		c.hasExited() // also where another has recorded it, and not come to this yet
	}
	if !ended {
		return
	}
	m.tellExit(c)
	if c.sharesPID() { // the processes that outlive the main one
		m.now("end the rest of container "+string(c.key), func(ctx context.Context) error {
			return m.signal(ctx, c, engine.Signal{Name: "SIGKILL", All: true})
		})
	}
}

// lost ends a ready sandbox whose engine side is gone, and tries until that is done.
func (m *Manager) lost(p *podEntry) (done <-chan struct{}) {
	m.log.Warn("the pod's sandbox is gone", "pod", p.key)
	return m.stopPodNow(p)
}

// stopPodNow is StopPod behind the calls.
func (m *Manager) stopPodNow(p *podEntry) (done <-chan struct{}) {
	p.stopping()
	return m.now("stop pod "+string(p.key), func(ctx context.Context) error {
		return m.locked(ctx, p, func(ctx context.Context) error { return m.stopPod(ctx, p) })
	})
}

// now does work behind the calls, at once and then as retry does. Done is closed after the first try.
func (m *Manager) now(name string, do func(context.Context) error) (done <-chan struct{}) {
	ended := make(chan struct{})
	m.work.Go(func() {
		defer close(ended)
		if err := do(m.ctx); err != nil {
			m.log.Warn("not done, trying again", "work", name, "error", err)
			m.retry(name, do)
		}
	})
	return ended
}

// reconcile makes memory agree with what an engine has: exits and starts that nobody told of,
// sandboxes that are gone, and what no record names, which is removed. The work that this gives is
// done behind the call.
func (m *Manager) reconcile(ctx context.Context, name string) (work []<-chan struct{}, err error) {
	// Only what was there before List can be missing from it.
	var pods []*podEntry
	for _, p := range m.index.allPods() {
		if sb := p.now.Load(); sb.Engine == name && sb.State == pod.SandboxReady {
			pods = append(pods, p)
		}
	}
	var containers []*containerEntry
	for _, c := range m.index.allContainers() {
		if c.pod.now.Load().Engine == name && c.seen() != nil {
			containers = append(containers, c)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, m.times.Undo)
	defer cancel()
	inv, err := m.opts.Engines[name].List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list engine %s: %w", name, err)
	}
	infos := make(map[pod.Key]*engine.ContainerInfo, len(inv.Containers))
	for i := range inv.Containers {
		infos[inv.Containers[i].Key] = &inv.Containers[i]
	}
	for _, c := range containers {
		m.settle(c, infos[c.key])
	}
	ready := make(map[pod.Key]bool, len(inv.Sandboxes))
	for _, s := range inv.Sandboxes {
		ready[s.Key] = s.Ready
	}
	for _, p := range pods {
		if !ready[p.key] || p.oldBoot {
			work = append(work, m.lost(p))
		}
	}
	return append(work, m.removeOrphans(name, inv)...), nil
}

// logDropped takes note of how much output was kept out of a container's log.
func (m *Manager) logDropped(key pod.Key, dropped int64) {
	c := m.index.containerByKey(key)
	if c == nil || c.now.Load().LogDropped >= dropped {
		return
	}
	is := c.now.Load()
	m.log.Warn("a container's log has reached its bounds or its disk is full, output is dropped",
		"container", key, "name", is.Spec.Name, "bytes", dropped-is.LogDropped, "total", dropped)
	c.note(func(is pod.Container) *pod.Container { is.LogDropped = dropped; return &is })
}

// settle makes one container's record agree with what the engine says, nil when it has none.
func (m *Manager) settle(c *containerEntry, info *engine.ContainerInfo) {
	unknown := pod.Exit{Code: 255, Unknown: true, At: time.Now()}
	if info != nil {
		m.logDropped(c.key, info.LogDropped)
	}
	switch {
	case info != nil && info.State == pod.ContainerExited:
		if info.Exit != nil {
			unknown = *info.Exit
		}
		c.note(func(is pod.Container) *pod.Container {
			if is.State != pod.ContainerExited && is.StartedAt.IsZero() {
				is.StartedAt = is.CreatedAt // a crash took the true time
			}
			return &is
		})
		m.exited(c, unknown)
	case info == nil || c.oldBoot:
		m.exited(c, unknown)
	case info.State == pod.ContainerRunning && c.now.Load().State == pod.ContainerExited:
		// Its start had failed, and it began all the same. If it has ended since List, nothing is left to end.
		m.log.Warn("a container runs that is recorded as exited; it is ended", "container", c.key)
		m.now(endingOfContainer(c), m.containerEnder(c))
	case info.State == pod.ContainerRunning:
		err := c.change(func(is *pod.Container) (*pod.Container, error) {
			if is.State == pod.ContainerRunning && is.Pid == info.Pid {
				return nil, nil
			}
			if is.State != pod.ContainerCreated && is.State != pod.ContainerRunning {
				return nil, nil
			}
			n, err := is.To(pod.ContainerRunning)
			if err == nil {
				n.Pid = info.Pid
				if n.StartedAt.IsZero() {
					n.StartedAt = n.CreatedAt // a crash took the true time
				}
			}
			return n, err
		})
		if err != nil {
			m.log.Error("a running container could not be recorded", "container", c.key, "error", err)
		}
	}
}
