package native

import (
	"context"
	"fmt"
	"slices"

	"gantry/internal/engine"
	"gantry/internal/ocispec"
	"gantry/internal/pod"
	"gantry/internal/selabel"
)

// relabel gives the pod's files below /etc, and the mounts of the client and of plugins that say so, the
// container's SELinux label, as containerd does: a directory that two pods have is the later one's. Mounts of
// images and /dev/shm are mounted with theirs.
func (e *Engine) relabel(ctx context.Context, req *engine.Create, mounts []pod.Mount, labels selabel.Labels) error {
	if labels == (selabel.Labels{}) {
		return nil
	}
	var paths []string
	for _, file := range []string{req.Files.ResolvConf, req.Files.Hosts, req.Files.Hostname} {
		if file != "" {
			paths = append(paths, file)
		}
	}
	for i := range mounts {
		if mounts[i].SELinuxRelabel && mounts[i].Image == "" {
			paths = append(paths, mounts[i].HostPath)
		}
	}
	if req.Adjust != nil {
		for _, m := range req.Adjust.Mounts {
			if slices.Contains(m.Options, ocispec.Relabel) {
				paths = append(paths, m.Source)
			}
		}
	}
	_, err := within(ctx, "relabel mounts", func() (none struct{}, err error) {
		for _, path := range paths {
			if err = e.labels.Relabel(path, labels); err != nil {
				return none, err
			}
		}
		return none, nil
	})
	return err
}

// within does what may wait for a file system that does not answer, and nothing ends a call that waits for that: it
// is left alone when ctx ends.
func within[T any](ctx context.Context, what string, do func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		value, err := do()
		done <- answer{value, err}
	}()
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
		var zero T
		return zero, fmt.Errorf("%s: %w", what, context.Cause(ctx))
	}
}

// recoverLabels finds the labels of the sandboxes and containers that an earlier server made. A record that cannot
// be read is undone by whoever finds it in the inventory.
func (e *Engine) recoverLabels() error {
	sandboxes, err := keys(e.sandboxDir(""))
	if err != nil {
		return err
	}
	containers, err := keys(e.containerDir(""))
	if err != nil {
		return err
	}
	for _, key := range sandboxes {
		if r, unread := e.readSandbox(key); unread == nil {
			e.labels.Recover(key, r.Labels)
		}
	}
	for _, key := range containers {
		if r, unread := e.readContainer(key); unread == nil {
			e.labels.Recover(key, r.Labels)
		}
	}
	return nil
}
