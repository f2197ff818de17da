package lifecycle

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

// UpdateContainer applies new limits to a created or running container; what r leaves zero stays.
func (m *Manager) UpdateContainer(ctx context.Context, id string, r *pod.Resources) error {
	c, err := m.index.container(id)
	if err != nil {
		return err
	}
	return m.locked(ctx, c.pod, func(ctx context.Context) error {
		if s := c.now.Load().State; s != pod.ContainerCreated && s != pod.ContainerRunning {
			return fmt.Errorf("container %s is %s: %w", c.key.Short(), s, errdefs.ErrFailedPrecondition)
		}
		if err := c.pod.engine.UpdateContainer(ctx, c.key, r); err != nil {
			return fmt.Errorf("update container: %w", err)
		}
		return c.change(func(is *pod.Container) (*pod.Container, error) {
			n := *is
			n.Spec.Resources = is.Spec.Resources.With(r)
			return &n, nil
		})
	})
}

// UpdatePod takes the new sum of the resources of a pod's containers, and what the pod needs beside
// them. Each may be nil, which leaves it; what they leave zero stays.
func (m *Manager) UpdatePod(ctx context.Context, id string, overhead, resources *pod.Resources) error {
	p, err := m.index.pod(id)
	if err != nil {
		return err
	}
	return m.locked(ctx, p, func(ctx context.Context) error {
		if err := mustBeReady(p); err != nil {
			return err
		}
		if resources != nil {
			if err := p.engine.UpdateSandbox(ctx, p.key, resources); err != nil {
				return fmt.Errorf("update pod: %w", err)
			}
		}
		return p.change(func(is *pod.Sandbox) (*pod.Sandbox, error) {
			n := *is
			n.Spec.Overhead = merged(is.Spec.Overhead, overhead)
			n.Spec.Resources = merged(is.Spec.Resources, resources)
			return &n, nil
		})
	})
}

func merged(is, change *pod.Resources) *pod.Resources {
	if is == nil || change == nil {
		if change != nil {
			return change
		}
		return is
	}
	n := is.With(change)
	return &n
}
