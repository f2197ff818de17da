package lifecycle

import (
	"context"
	"fmt"

	"gantry/internal/engine"
	"gantry/internal/pod"
	"gantry/internal/store"
)

// takeOver records what an earlier runtime has left on the engines, where that is wanted, and tells the
// engines what was taken over now and by earlier starts. Nothing is stopped: the client sees sandboxes
// that are not ready, makes others instead and then stops these. Without an answer of the engine the
// server must not start: the client would make pods beside those that run.
func (m *Manager) takeOver(ctx context.Context, loaded *store.Loaded) error {
	for name, eng := range m.opts.Engines {
		heir, ok := eng.(engine.Heir)
		if !ok {
			continue
		}
		heir.TakeOver(takenOver(loaded, name)...)
		if !m.opts.TakeOver {
			continue
		}
		if err := m.takeOverFrom(ctx, name, heir, loaded); err != nil {
			return fmt.Errorf("take over from an earlier runtime on %s: %w", name, err)
		}
	}
	return nil
}

// takenOver are the keys of the records on an engine whose id came before the key.
func takenOver(loaded *store.Loaded, name string) []pod.Key {
	var keys []pod.Key
	on := make(map[pod.Key]bool)
	for _, r := range loaded.Pods {
		on[r.Spec.Key] = r.Engine == name
		if on[r.Spec.Key] && r.ID == string(r.Spec.Key) {
			keys = append(keys, r.Spec.Key)
		}
	}
	for _, r := range loaded.Containers {
		if on[r.Spec.Sandbox] && r.ID == string(r.Spec.Key) {
			keys = append(keys, r.Spec.Key)
		}
	}
	return keys
}

// takeOverFrom writes a record of every sandbox before those of its containers: a container without
// its sandbox's would be removed.
func (m *Manager) takeOverFrom(ctx context.Context, name string, heir engine.Heir, loaded *store.Loaded) error {
	ctx, cancel := context.WithTimeout(ctx, m.times.Recover)
	defer cancel()
	pods, containers, err := heir.Foreign(ctx)
	if err != nil {
		return err
	}
	known := make(map[pod.Key]bool)
	for _, r := range loaded.Pods {
		known[r.Spec.Key] = true
	}
	for _, sb := range pods {
		sb.Engine, sb.State, sb.Step = name, pod.SandboxNotReady, stepTakenOver
		if err := m.journal.PutPod(sb); err != nil {
			return err
		}
		loaded.Pods = append(loaded.Pods, store.Pod{Sandbox: sb})
		known[sb.Spec.Key] = true
		heir.TakeOver(sb.Spec.Key)
	}
	for _, c := range containers {
		if !known[c.Spec.Sandbox] {
			m.log.Warn("a container of an earlier runtime names no sandbox and is left alone", "container", c.ID)
			continue
		}
		if err := m.journal.PutContainer(c); err != nil {
			return err
		}
		loaded.Containers = append(loaded.Containers, store.Container{Container: c})
		heir.TakeOver(c.Spec.Key)
	}
	if len(pods)+len(containers) > 0 {
		m.log.Info("took over from an earlier runtime", "engine", name, "pods", len(pods), "containers", len(containers))
	}
	return nil
}
