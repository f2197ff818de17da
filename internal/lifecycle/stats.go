package lifecycle

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// ContainerStats reads what a running container uses. One that does not run is ErrFailedPrecondition.
func (m *Manager) ContainerStats(ctx context.Context, id string) (*pod.Stats, error) {
	c, err := m.index.container(id)
	if err != nil {
		return nil, err
	}
	is := c.now.Load()
	if is.State != pod.ContainerRunning {
		return nil, fmt.Errorf("container %s is %s: %w", id, is.State, errdefs.ErrFailedPrecondition)
	}
	if s, ok := c.pod.engine.(engine.Stater); ok {
		return s.Stats(ctx, c.key)
	}
	if m.opts.Meter == nil {
		return nil, fmt.Errorf("statistics of container %s: %w", id, errdefs.ErrNotImplemented)
	}
	return m.opts.Meter.Container(is)
}

// PodStats reads what a pod uses as a whole: its cgroup, which remembers containers that are gone,
// or the sum of its running containers where it has no cgroup of its own.
func (m *Manager) PodStats(ctx context.Context, id string) (*pod.Stats, error) {
	p, err := m.index.pod(id)
	if err != nil {
		return nil, err
	}
	s, err := m.podStats(ctx, p)
	if err != nil {
		return nil, err
	}
	s.Network = m.podNetwork(p)
	return s, nil
}

func (m *Manager) podStats(ctx context.Context, p *podEntry) (*pod.Stats, error) {
	if path := m.ownCgroup(p); path != "" {
		s, err := m.opts.Meter.Cgroup(path)
		if !errdefs.IsNotFound(err) {
			return s, err
		}
	}
	return m.sumStats(ctx, p)
}

// sumStats adds up the running containers. A pod without one has zeros and the time of asking.
func (m *Manager) sumStats(ctx context.Context, p *podEntry) (*pod.Stats, error) {
	sum := &pod.Stats{At: time.Now()}
	for _, c := range m.index.containersOf(p.key) {
		if c.now.Load().State != pod.ContainerRunning {
			continue
		}
		s, err := m.ContainerStats(ctx, c.id())
		if endedMeanwhile(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		sum.CPUUsage += s.CPUUsage
		sum.MemoryUsage += s.MemoryUsage
		sum.MemoryWorkingSet += s.MemoryWorkingSet
		sum.MemoryRSS += s.MemoryRSS
		sum.PageFaults += s.PageFaults
		sum.MajorPageFaults += s.MajorPageFaults
		sum.SwapUsage += s.SwapUsage
		sum.Processes += s.Processes
	}
	return sum, nil
}

func endedMeanwhile(err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err)
}

// ContainerMetrics reads all that can be known of a running container.
func (m *Manager) ContainerMetrics(ctx context.Context, id string) (*pod.Metrics, error) {
	c, err := m.index.container(id)
	if err != nil {
		return nil, err
	}
	is := c.now.Load()
	if is.State != pod.ContainerRunning {
		return nil, fmt.Errorf("container %s is %s: %w", id, is.State, errdefs.ErrFailedPrecondition)
	}
	if m.opts.Meter == nil || is.CgroupPath == "" {
		s, err := m.ContainerStats(ctx, id)
		if err != nil {
			return nil, err
		}
		return &pod.Metrics{Stats: *s}, nil
	}
	return m.opts.Meter.ContainerMetrics(is)
}

// PodMetrics reads all that can be known of a pod as a whole.
func (m *Manager) PodMetrics(ctx context.Context, id string) (*pod.Metrics, error) {
	p, err := m.index.pod(id)
	if err != nil {
		return nil, err
	}
	metrics := new(pod.Metrics)
	err = errdefs.ErrNotFound
	if path := m.ownCgroup(p); path != "" {
		metrics, err = m.opts.Meter.CgroupMetrics(path)
	}
	if errdefs.IsNotFound(err) {
		var sum *pod.Stats
		if sum, err = m.sumStats(ctx, p); err == nil {
			metrics = &pod.Metrics{Stats: *sum}
		}
	}
	if err != nil {
		return nil, err
	}
	metrics.Network = m.podNetwork(p)
	return metrics, nil
}

// ownCgroup is the cgroup whose use is the pod's: "" where the client put containers of other pods
// below it too. Sandboxes of one pod, an old one and its successor, share theirs.
func (m *Manager) ownCgroup(p *podEntry) string {
	sb := p.now.Load()
	if m.opts.Meter == nil || sb.CgroupPath == "" {
		return ""
	}
	if sb.Spec.CgroupParent == "" { // it is named after the sandbox
		return sb.CgroupPath
	}
	if m.index.sharesCgroup(sb) {
		return ""
	}
	return sb.CgroupPath
}

// unmeter gives up what is kept of a cgroup for its statistics.
func (m *Manager) unmeter(cgroup string) {
	if m.opts.Meter != nil && cgroup != "" {
		m.opts.Meter.Forget(cgroup)
	}
}

// podNetwork is nil for a pod on the node's network, and where the interfaces cannot be read: the
// rest of the statistics is as good without.
func (m *Manager) podNetwork(p *podEntry) *pod.NetworkUsage {
	sb := p.now.Load()
	if m.opts.Meter == nil || sb.NetNS == "" || sb.State != pod.SandboxReady {
		return nil
	}
	var pids []int
	for _, c := range m.index.containersOf(p.key) {
		if is := c.now.Load(); is.State == pod.ContainerRunning && is.Pid > 0 {
			pids = append(pids, is.Pid)
		}
	}
	n, err := m.opts.Meter.Network(sb.NetNS, pids)
	if err != nil {
		m.log.Debug("the interfaces of a pod could not be read", "pod", p.key, "error", err)
	}
	return n
}
