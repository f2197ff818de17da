package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"

	"gantry/internal/cni"
	"gantry/internal/engine"
	"gantry/internal/pod"
	"gantry/internal/store"
)

// Recover makes what the journal says, what the engines have and what the network gave out agree,
// and begins to watch the engines. It is called once, before any other method. What was half made is
// undone, what was half undone is finished, what ended meanwhile is reported as it ended, and what
// no record names is removed. A pod that is stuck delays the start for a bounded time; the work on
// it goes on behind. The error is one without which the server cannot work.
func (m *Manager) Recover(ctx context.Context) error {
	loaded, err := m.journal.Load()
	if err != nil {
		return err
	}
	for _, bad := range loaded.SetAside {
		m.log.Error("a journal file is no record and was set aside; what it named is removed", "file", bad.Path, "error", bad.Reason)
	}
	if err := m.takeOver(ctx, loaded); err != nil {
		return err
	}
	if err := os.MkdirAll(m.podsDir(), 0o755); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	if err := os.MkdirAll(m.opts.CheckpointDir, 0o700); err != nil {
		return fmt.Errorf("make directory of checkpoints: %w", err)
	}
	bounded, cancel := context.WithTimeout(ctx, m.times.Recover)
	defer cancel()
	for _, part := range []struct {
		point string
		do    func()
	}{
		{pointJournal, func() { m.adopt(loaded) }},
		{pointEngines, func() { m.await(bounded, m.observeAll()) }},
		{pointFinish, func() { m.await(bounded, m.finish()) }},
		{pointCollect, func() { m.collect(ctx) }},
	} {
		part.do()
		if err := m.reached(OpRecover, part.point); err != nil {
			return fmt.Errorf("recover: %s: %w", part.point, err)
		}
	}
	if bounded.Err() != nil {
		m.log.Warn("recovery goes on behind the start", "waited", m.times.Recover)
	}
	return ctx.Err()
}

// adopt fills the index from the journal.
func (m *Manager) adopt(loaded *store.Loaded) {
	for _, r := range loaded.Pods {
		if m.opts.Engines[r.Engine] == nil {
			m.log.Error("a pod's engine is not configured; the pod is left alone", "pod", r.Spec.Key, "engine", r.Engine)
			m.foreign[r.Spec.Key] = r.Sandbox
			continue
		}
		if r.OldBoot && r.State == pod.SandboxReady {
			m.log.Info("the pod ran before the machine last started", "pod", r.Spec.Key)
		}
		p := m.newPodEntry(r.Sandbox)
		p.oldBoot = r.OldBoot
		m.index.addPod(p)
	}
	for _, r := range loaded.Containers {
		p := m.index.podByKey(r.Spec.Sandbox)
		if p == nil {
			if m.foreign[r.Spec.Sandbox] == nil {
				m.dropContainer(r.Container)
			}
			continue
		}
		c := m.newContainerEntry(p, r.Container)
		c.oldBoot = r.OldBoot
		m.index.addContainer(c)
	}
}

// dropContainer forgets a container without a sandbox. What the engine has of it is then something
// that no record names.
func (m *Manager) dropContainer(c *pod.Container) {
	m.log.Warn("a container's sandbox has no record; the container is removed", "container", c.Spec.Key, "pod", c.Spec.Sandbox)
	if err := m.journal.DeleteContainer(c.Spec.Key); err != nil {
		m.log.Error("a record could not be deleted", "container", c.Spec.Key, "error", err)
	}
}

// observeAll begins to watch every engine and returns the work of the first look at each.
func (m *Manager) observeAll() []<-chan struct{} {
	var all []<-chan struct{}
	for name := range m.opts.Engines {
		looked := make(chan struct{})
		all = append(all, looked)
		var once sync.Once
		m.work.Go(func() {
			m.observe(m.ctx, name, func(work []<-chan struct{}) {
				once.Do(func() {
					m.work.Go(func() {
						defer close(looked)
						m.await(m.ctx, work)
					})
				})
			})
		})
	}
	return all
}

// finish undoes what was being made when the server ended, and goes on with what was being undone.
func (m *Manager) finish() []<-chan struct{} {
	var work []<-chan struct{}
	for _, p := range m.index.allPods() {
		sb := p.now.Load()
		if sb.Capture != nil {
			work = append(work, m.finishCapture(p))
		}
		if sb.State == pod.SandboxReady && sb.Restoring {
			work = append(work, m.unrestoreNow(p))
		}
		switch sb.State {
		case pod.SandboxCreating:
			work = append(work, m.finishPod(OpUndoPod, p))
		case pod.SandboxRemoving:
			work = append(work, m.finishPod(OpRemovePod, p))
		case pod.SandboxNotReady:
			if !hasStopped(p) && sb.Step != stepTakenOver {
				work = append(work, m.stopPodNow(p))
			}
		}
	}
	for _, c := range m.index.allContainers() {
		switch c.now.Load().State {
		case pod.ContainerCreating:
			work = append(work, m.finishContainer(OpUndoContainer, c))
		case pod.ContainerRemoving:
			work = append(work, m.finishContainer(OpRemoveContainer, c))
		}
	}
	return work
}

func (m *Manager) finishPod(op Op, p *podEntry) <-chan struct{} {
	return m.now("remove pod "+string(p.key), func(ctx context.Context) error {
		return m.locked(ctx, p, func(ctx context.Context) error { return m.undoPod(ctx, op, p) })
	})
}

func (m *Manager) finishContainer(op Op, c *containerEntry) <-chan struct{} {
	return m.now("remove container "+string(c.key), func(ctx context.Context) error {
		return m.locked(ctx, c.pod, func(ctx context.Context) error { return m.undoContainer(ctx, op, c) })
	})
}

// await waits for all work or until ctx ends.
func (m *Manager) await(ctx context.Context, work []<-chan struct{}) {
	for _, w := range work {
		select {
		case <-w:
		case <-ctx.Done():
			return
		}
	}
}

// removeOrphans removes what an engine has and no record names: containers first, then sandboxes.
func (m *Manager) removeOrphans(name string, inv engine.Inventory) []<-chan struct{} {
	var containers, sandboxes []func(context.Context) error
	eng := m.opts.Engines[name]
	for _, c := range inv.Containers {
		if m.index.containerByKey(c.Key) == nil {
			m.log.Warn("removing a container that no record names", "container", c.Key, "engine", name)
			containers = append(containers, func(ctx context.Context) error { return eng.RemoveContainer(ctx, c.Key) })
		}
	}
	for _, s := range inv.Sandboxes {
		if m.index.podByKey(s.Key) == nil {
			m.log.Warn("removing a sandbox that no record names", "pod", s.Key, "engine", name)
			sandboxes = append(sandboxes, func(ctx context.Context) error { return m.removeOrphan(ctx, eng, s) })
		}
	}
	if len(containers)+len(sandboxes) == 0 {
		return nil
	}
	return []<-chan struct{}{m.now("remove what no record names on "+name, func(ctx context.Context) error {
		return errors.Join(m.all(ctx, containers), m.all(ctx, sandboxes))
	})}
}

func (m *Manager) removeOrphan(ctx context.Context, eng engine.Engine, s engine.SandboxInfo) error {
	if err := m.opts.Network.Detach(ctx, &cni.Attachment{Key: s.Key, NetNS: s.NetNS}); err != nil {
		return err // the namespace is needed to try again
	}
	return errors.Join(eng.StopSandbox(ctx, s.Key), eng.RemoveSandbox(ctx, s.Key))
}

// all does everything at once, each within the time of one step of undoing.
func (m *Manager) all(ctx context.Context, work []func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, m.times.Undo)
	defer cancel()
	errs := make([]error, len(work))
	var wg sync.WaitGroup
	for i, do := range work {
		wg.Go(func() { errs[i] = do(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// collect gives back what the network and the state directory hold for no pod that is known.
func (m *Manager) collect(ctx context.Context) {
	var keep []*cni.Attachment
	for _, p := range m.index.allPods() {
		if sb := p.now.Load(); !sb.Spec.HostNetwork() && !hasStopped(p) {
			keep = append(keep, attachment(sb))
		}
	}
	for _, sb := range m.foreign {
		keep = append(keep, attachment(sb))
	}
	bounded, cancel := context.WithTimeout(ctx, m.times.Recover)
	defer cancel()
	if err := m.opts.Network.GC(bounded, keep); err != nil && !errdefs.IsNotImplemented(err) {
		m.log.Warn("the network's garbage was not collected", "error", err)
	}
	m.collectCheckpoints()
	entries, err := os.ReadDir(m.podsDir())
	if err != nil {
		m.log.Warn("the state directory was not read", "error", err)
	}
	for _, e := range entries {
		if key := pod.Key(e.Name()); m.index.podByKey(key) != nil || m.foreign[key] != nil {
			continue
		}
		if err := removeDir(filepath.Join(m.podsDir(), e.Name())); err != nil {
			m.log.Warn("a pod directory that no record names was not removed", "error", err)
		}
	}
}
