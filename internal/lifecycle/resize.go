package lifecycle

import (
	"context"
	"fmt"

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
			return fmt.Errorf("container %s is %s: %w", c.key.Short(), s, errEnded)
		}
		answer, err := m.ask(ctx, c, pod.MomentUpdate, r)
		if err != nil {
			return err
		}
		if answer.Resources != nil {
			r = answer.Resources
		}
		if err := m.resize(ctx, c, r); err != nil {
			return err
		}
		m.tellContainer(ctx, c, pod.MomentUpdated)
		return nil
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
		asked := &pod.SandboxEvent{At: pod.MomentUpdate, Sandbox: p.now.Load(), Overhead: overhead, Resources: resources}
		if err := m.opts.Plugins.Pod(ctx, asked); err != nil {
			return err
		}
		if resources != nil {
			if err := p.engine.UpdateSandbox(ctx, p.key, resources); err != nil {
				return fmt.Errorf("update pod: %w", err)
			}
		}
		err := p.change(func(is *pod.Sandbox) (*pod.Sandbox, error) {
			n := *is
			n.Spec.Overhead = merged(is.Spec.Overhead, overhead)
			n.Spec.Resources = merged(is.Spec.Resources, resources)
			return &n, nil
		})
		if err == nil {
			m.tellPod(ctx, p, pod.MomentUpdated)
		}
		return err
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
