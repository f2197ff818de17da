package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// startFailed is the exit code of a container that could not be started, as other runtimes give it.
const startFailed = 128

// StartContainer lets a created container run; one in any other state is ErrFailedPrecondition. A
// container that cannot be started is reported exited with the reason StartError.
func (m *Manager) StartContainer(ctx context.Context, id string) error {
	c, err := m.index.container(id)
	if err != nil {
		return err
	}
	_, err = m.actions.do(ctx, "start "+string(c.key), func(ctx context.Context) (struct{}, error) {
		ctx, done := c.pod.while(ctx)
		defer done()
		return struct{}{}, causeOf(ctx, m.locked(ctx, c.pod, func(ctx context.Context) error { return m.startContainer(ctx, c) }))
	})
	return err
}

func (m *Manager) startContainer(ctx context.Context, c *containerEntry) error {
	if err := mustBeReady(c.pod); err != nil {
		return err
	}
	if s := c.now.Load().State; s != pod.ContainerCreated {
		return fmt.Errorf("container %s is %s, not created: %w", c.key.Short(), s, errdefs.ErrFailedPrecondition)
	}
	began := time.Now()
	c.starting.Store(true)
	c.act(stepRun)
	defer c.rest()
	if _, err := m.ask(ctx, c, pod.MomentStart, nil); err != nil {
		m.failStart(context.WithoutCancel(ctx), c, err)
		return fmt.Errorf("start container: %w", err)
	}
	started, err := m.engineStart(ctx, c)
	if err != nil {
		if !errdefs.IsUnavailable(err) { // else it may be started when the engine answers again
			m.failStart(context.WithoutCancel(ctx), c, err)
		}
		return fmt.Errorf("start container: %w", err)
	}
	if err = m.reached(OpStartContainer, pointStarted); err != nil {
		return err
	}
	err = c.mark(m.log, func(is *pod.Container) (*pod.Container, error) {
		n := *is
		n.StartedAt = began
		n.CgroupPath = cmp.Or(started.CgroupPath, n.CgroupPath)
		if n.State == pod.ContainerExited { // its exit was quicker than the answer
			return &n, nil
		}
		n.Pid = cmp.Or(started.Pid, n.Pid)
		return n.To(pod.ContainerRunning)
	})
	if err != nil {
		return err
	}
	if c.now.Load().Restored {
		m.hasRestored(c)
	}
	if err = m.reached(OpStartContainer, pointRecord); err != nil {
		return err
	}
	m.tellContainer(ctx, c, pod.MomentStarted)
	return nil
}

func (m *Manager) engineStart(ctx context.Context, c *containerEntry) (engine.Started, error) {
	unlock, err := m.locks.Lock(ctx, c.key)
	if err != nil {
		return engine.Started{}, err
	}
	defer unlock()
	return c.pod.engine.StartContainer(ctx, c.key)
}

// failStart makes sure that nothing runs and says why in the container's status.
func (m *Manager) failStart(ctx context.Context, c *containerEntry, reason error) {
	ctx, cancel := context.WithTimeout(ctx, m.times.Undo)
	defer cancel()
	c.starting.Store(false) // the end that is seen now is not one of a container that ran
	err := c.pod.engine.SignalContainer(ctx, c.key, engine.Signal{Name: "SIGKILL", All: true})
	if err != nil && !errdefs.IsNotFound(err) {
		m.log.Warn("a container that could not be started could not be killed, trying again", "container", c.key, "error", err)
		m.retry(endingOfContainer(c), m.containerEnder(c))
	}
	err = c.mark(m.log, func(is *pod.Container) (*pod.Container, error) {
		n, illegal := is.Exited(pod.Exit{Code: startFailed, At: time.Now()})
		if illegal != nil {
			return nil, illegal
		}
		n.ExitCode, n.Reason, n.Message = startFailed, pod.ReasonStartFail, reason.Error()
		return n, nil
	})
	if err != nil {
		m.log.Warn("a failed start could not be recorded", "container", c.key, "error", err)
		return
	}
	c.hasExited()
}

func endingOfContainer(c *containerEntry) string { return "end container " + string(c.key) }

// containerEnder ends whatever runs of a container that is recorded as exited.
func (m *Manager) containerEnder(c *containerEntry) func(context.Context) error {
	return func(ctx context.Context) error { return m.signal(ctx, c, engine.Signal{Name: "SIGKILL", All: true}) }
}

// StopContainer sends the stop signal, waits for grace and kills. Zero kills at once. It returns when
// the container has ended; one that does not run, or is not there, is no error.
func (m *Manager) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := m.index.container(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil || c.now.Load().State != pod.ContainerRunning {
		return err
	}
	return m.stopContainer(ctx, c, grace)
}

// stopContainer holds no lock while it waits: a second stop with less grace must not wait for the first.
func (m *Manager) stopContainer(ctx context.Context, c *containerEntry, grace time.Duration) error {
	if grace > 0 {
		if err := m.signal(ctx, c, engine.Signal{Name: c.now.Load().StopSignal}); err != nil {
			return err
		}
		if err := m.reached(OpStopContainer, pointSignal); err != nil {
			return err
		}
		if err := waitExit(ctx, c, grace); err != nil {
			return err
		}
	}
	return m.kill(ctx, c)
}

// kill ends what is left of a container, and returns when its main process has ended.
func (m *Manager) kill(ctx context.Context, c *containerEntry) error {
	if hasEnded(c) {
		if !c.sharesPID() {
			return nil
		}
		return m.signal(ctx, c, engine.Signal{Name: "SIGKILL", All: true})
	}
	if err := m.signal(ctx, c, engine.Signal{Name: "SIGKILL", All: c.sharesPID()}); err != nil {
		return err
	}
	if err := waitExit(ctx, c, m.times.Kill); err != nil {
		return err
	}
	if !hasEnded(c) {
		if _, err := m.reconcile(ctx, c.pod.now.Load().Engine); err != nil {
			return err
		}
	}
	if !hasEnded(c) {
		return fmt.Errorf("container %s runs on %v after SIGKILL: %w", c.key.Short(), m.times.Kill, errdefs.ErrUnavailable)
	}
	return m.reached(OpStopContainer, pointKill)
}

// signal sends a signal. A container that the engine does not know any more has ended, nobody knows how.
func (m *Manager) signal(ctx context.Context, c *containerEntry, s engine.Signal) error {
	err := c.pod.engine.SignalContainer(ctx, c.key, s)
	if errdefs.IsNotFound(err) {
		m.exited(c, pod.Exit{Code: 255, Unknown: true, At: time.Now()})
		return nil
	}
	if err != nil {
		return fmt.Errorf("send %s: %w", s.Name, err)
	}
	return nil
}

// waitExit waits for the exit, for as long as limit. Only ctx's end is an error.
func waitExit(ctx context.Context, c *containerEntry, limit time.Duration) error {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-c.exited:
	case <-t.C:
	case <-ctx.Done():
		return fmt.Errorf("wait for container %s to end: %w", c.key.Short(), context.Cause(ctx))
	}
	return nil
}

func hasEnded(c *containerEntry) bool {
	select {
	case <-c.exited:
		return true
	default:
		return false
	}
}

// RemoveContainer removes a container, killing it first if it runs. One that is not there is no error.
func (m *Manager) RemoveContainer(ctx context.Context, id string) error {
	c, err := m.index.container(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.actions.do(ctx, "remove "+string(c.key), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, m.locked(ctx, c.pod, func(ctx context.Context) error { return m.removeContainer(ctx, c) })
	})
	return err
}

// removeContainer is RemoveContainer with the pod's lock held.
func (m *Manager) removeContainer(ctx context.Context, c *containerEntry) error {
	if m.index.containerByKey(c.key) != c {
		return nil
	}
	if c.now.Load().State == pod.ContainerRunning {
		if err := m.kill(ctx, c); err != nil {
			return err
		}
	}
	if c.now.Load().State != pod.ContainerCreating {
		if err := c.mark(m.log, func(is *pod.Container) (*pod.Container, error) { return is.To(pod.ContainerRemoving) }); err != nil {
			return err
		}
	}
	err := m.reached(OpRemoveContainer, pointIntent)
	if err == nil {
		err = m.undoContainer(ctx, OpRemoveContainer, c)
	}
	if err != nil { // no list shows it any more, so nobody may ask again
		m.undoContainerLater(OpRemoveContainer, c)
		return err
	}
	return nil
}

// killContainers ends all containers of a pod at once (CRI StopPodSandbox: running containers are
// forcibly terminated). A created one is ended too: what it would run in is about to go.
func (m *Manager) killContainers(ctx context.Context, p *podEntry) error {
	return each(m.index.containersOf(p.key), func(c *containerEntry) error {
		switch c.now.Load().State {
		case pod.ContainerRunning:
			if err := m.kill(ctx, c); err != nil {
				return err
			}
		case pod.ContainerCreated:
			if err := m.signal(ctx, c, engine.Signal{Name: "SIGKILL", All: true}); err != nil {
				return err
			}
			m.exited(c, pod.Exit{Code: 137, At: time.Now()})
		}
		m.tellContainer(ctx, c, pod.MomentStop)
		return nil
	})
}

// removeContainers removes all containers of a pod. The pod's lock is held.
func (m *Manager) removeContainers(ctx context.Context, p *podEntry) error {
	return each(m.index.containersOf(p.key), func(c *containerEntry) error { return m.removeContainer(ctx, c) })
}

// each does the same with all entries at once.
func each(all []*containerEntry, do func(*containerEntry) error) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() {
			if err := do(c); err != nil {
				errs[i] = fmt.Errorf("container %s: %w", c.key.Short(), err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Container returns a container as it is now.
func (m *Manager) Container(_ context.Context, id string) (*pod.Container, error) {
	c, err := m.index.container(id)
	if err != nil {
		return nil, err
	}
	is := c.seen()
	if is == nil {
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return is, nil
}

// Containers returns every container as it is now, oldest first.
func (m *Manager) Containers(context.Context) []*pod.Container {
	var all []*pod.Container
	for _, c := range m.index.allContainers() {
		if is := c.seen(); is != nil {
			all = append(all, is)
		}
	}
	return all
}
