package fake

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"gantry/internal/checkpoint"
	"gantry/internal/engine"
	"gantry/internal/pod"
)

var (
	_ engine.Pauser       = (*Engine)(nil)
	_ engine.Checkpointer = (*Engine)(nil)
)

// Paused lists the keys of the containers that are paused.
func (e *Engine) Paused() []pod.Key {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []pod.Key
	for k, c := range e.containers {
		if c.paused {
			all = append(all, k)
		}
	}
	return all
}

// Pause implements engine.Pauser.
func (e *Engine) Pause(ctx context.Context, key pod.Key) error {
	return e.act(ctx, "Pause", func() error {
		c := e.containers[key]
		if c == nil || c.state != pod.ContainerRunning {
			return fmt.Errorf("container %s does not run: %w", key.Short(), errdefs.ErrFailedPrecondition)
		}
		c.paused = true
		return nil
	})
}

// Resume implements engine.Pauser.
func (e *Engine) Resume(ctx context.Context, key pod.Key) error {
	return e.act(ctx, "Resume", func() error {
		if c := e.containers[key]; c != nil {
			c.paused = false
		}
		return nil
	})
}

// CanCheckpoint implements engine.Checkpointer.
func (e *Engine) CanCheckpoint(ctx context.Context, _ string) error {
	return e.act(ctx, "CanCheckpoint", func() error { return nil })
}

// Checkpoint implements engine.Checkpointer: it writes the container's words.
func (e *Engine) Checkpoint(ctx context.Context, key pod.Key, dir string) error {
	return e.act(ctx, "Checkpoint", func() error {
		c := e.containers[key]
		if c == nil || c.state != pod.ContainerRunning {
			return fmt.Errorf("container %s does not run: %w", key.Short(), errdefs.ErrFailedPrecondition)
		}
		if !c.paused {
			return fmt.Errorf("container %s is not paused: %w", key.Short(), errdefs.ErrInternal)
		}
		if err := os.Mkdir(filepath.Join(dir, checkpoint.ImagesDir), 0o700); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, checkpoint.SpecFile), []byte("{}"), 0o600)
	})
}
