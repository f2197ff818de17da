// Package stats reads what containers and pods use: their cgroups, the interfaces of their network
// namespaces, the size of their writable layers. Everything is read when it is asked for; nothing
// runs when nobody asks, and no answer waits for a disk.
package stats

import (
	"fmt"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

// Cgroups reads cgroups by path, as package cgroup does.
type Cgroups interface {
	Read(cgroup string) (*pod.Stats, error)
	ReadMetrics(cgroup string) (*pod.Metrics, error)
	// MaxTasks is 0 without a limit.
	MaxTasks(cgroup string) uint64
	// Members are the processes in a cgroup and below it.
	Members(cgroup string) ([]int, error)
	// Forget gives up what is kept of a cgroup for the next reading.
	Forget(cgroup string)
}

// Layers tells the size of writable layers without waiting for the disk; nil while it is not known.
type Layers interface {
	LayerUsage(key string) (*pod.Usage, error)
}

// Reader reads statistics. It is safe for concurrent use.
type Reader struct {
	cgroups Cgroups
	layers  Layers
	rates   rates
}

// New returns a Reader. Layers may be nil where nobody knows the sizes of writable layers.
func New(cgroups Cgroups, layers Layers) *Reader {
	return &Reader{cgroups: cgroups, layers: layers, rates: rates{readings: make(map[string]reading)}}
}

// Container reads what a container uses. One without a cgroup on the node is errdefs.ErrNotImplemented,
// one whose cgroup is gone errdefs.ErrNotFound.
func (r *Reader) Container(c *pod.Container) (*pod.Stats, error) {
	if c.CgroupPath == "" {
		return nil, fmt.Errorf("statistics of container %s: %w", c.Spec.Key.Short(), errdefs.ErrNotImplemented)
	}
	s, err := r.cgroups.Read(c.CgroupPath)
	if err != nil {
		return nil, err
	}
	s.CPURate = r.rates.of(c.CgroupPath, s.At, s.CPUUsage)
	s.Layer = r.layer(c)
	return s, nil
}

// Cgroup reads what is used in a pod's cgroup as a whole.
func (r *Reader) Cgroup(path string) (*pod.Stats, error) {
	s, err := r.cgroups.Read(path)
	if err != nil {
		return nil, err
	}
	s.CPURate = r.rates.of(path, s.At, s.CPUUsage)
	return s, nil
}

// Forget gives up what is kept of a cgroup that is not read again.
func (r *Reader) Forget(cgroup string) {
	r.cgroups.Forget(cgroup)
	r.rates.forget(cgroup)
}

// ContainerMetrics reads all that can be known of a container.
func (r *Reader) ContainerMetrics(c *pod.Container) (*pod.Metrics, error) {
	if c.CgroupPath == "" {
		return nil, fmt.Errorf("metrics of container %s: %w", c.Spec.Key.Short(), errdefs.ErrNotImplemented)
	}
	m, err := r.cgroups.ReadMetrics(c.CgroupPath)
	if err != nil {
		return nil, err
	}
	if m.Layer = r.layer(c); m.Layer != nil {
		m.Filesystem = filesystem(m.Layer.Mountpoint)
	}
	pids, err := r.cgroups.Members(c.CgroupPath)
	if err != nil {
		return nil, err
	}
	if len(pids) > 0 {
		m.Tasks = tasks(pids, c.Pid)
		m.Tasks.Threads, m.Tasks.ThreadsMax = m.Processes, r.cgroups.MaxTasks(c.CgroupPath)
	}
	return m, nil
}

// CgroupMetrics reads all that can be known of a pod's cgroup as a whole.
func (r *Reader) CgroupMetrics(path string) (*pod.Metrics, error) { return r.cgroups.ReadMetrics(path) }

// layer leaves out a size that cannot be had: the rest of the statistics is as good without.
func (r *Reader) layer(c *pod.Container) *pod.Usage {
	if r.layers == nil {
		return nil
	}
	u, err := r.layers.LayerUsage(string(c.Spec.Key))
	if err != nil {
		return nil
	}
	return u
}
