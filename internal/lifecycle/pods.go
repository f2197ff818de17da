package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/cni"
	"gantry/internal/pod"
)

// RunPod makes a sandbox and returns its id. A repeat, with the same metadata and handler, joins the
// attempt under way or takes its result; a caller that leaves does not end the attempt.
func (m *Manager) RunPod(ctx context.Context, spec *pod.SandboxSpec) (string, error) {
	name, err := m.engineOf(spec.Handler)
	if err != nil {
		return "", err
	}
	md := spec.Metadata
	key := fmt.Sprintf("run %q %q %q %d %q", md.Namespace, md.Name, md.UID, md.Attempt, spec.Handler)
	return m.attempts.do(ctx, key, func(ctx context.Context) (string, error) {
		if p := m.readyPod(spec); p != nil {
			return p.id(), nil
		}
		return m.runPod(ctx, &pod.Sandbox{Spec: *spec, Engine: name})
	})
}

// readyPod finds what an earlier attempt of the same request made, unless its end has begun.
func (m *Manager) readyPod(spec *pod.SandboxSpec) *podEntry {
	for _, p := range m.index.podsNamed(spec.Metadata) {
		sb := p.now.Load()
		if sb.State == pod.SandboxReady && p.ending.Err() == nil && sb.Spec.Handler == spec.Handler {
			return p
		}
	}
	return nil
}

// runPod makes the sandbox sb, of which spec and engine are known.
func (m *Manager) runPod(ctx context.Context, sb *pod.Sandbox) (string, error) {
	sb.Spec.Key, sb.State, sb.CreatedAt, sb.Step = pod.NewKey(), pod.SandboxCreating, time.Now(), pointIntent
	p := m.newPodEntry(sb)
	unlock, err := m.locks.Lock(ctx, p.key)
	if err != nil {
		return "", err
	}
	defer unlock()
	m.index.addPod(p)
	if err := m.makePod(ctx, p); err != nil {
		if undone := m.undoPod(context.WithoutCancel(ctx), OpUndoPod, p); undone != nil {
			m.log.Warn("a pod that failed could not be undone, trying again", "pod", p.key, "error", undone)
			m.undoPodLater(OpUndoPod, p)
		}
		return "", causeOf(ctx, err)
	}
	return p.id(), nil
}

// causeOf says why, when err is only that ctx ended.
func causeOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, ctx.Err()) && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

func (m *Manager) makePod(ctx context.Context, p *podEntry) error {
	if err := p.change(func(sb *pod.Sandbox) (*pod.Sandbox, error) { return sb, nil }); err != nil {
		return err
	}
	if err := m.reached(OpRunPod, pointIntent); err != nil {
		return err
	}
	return forward(ctx, m, OpRunPod, m.podSteps(), p)
}

// undoPod walks all the way back and deletes the record only when every undo succeeded. The pod's
// lock is held.
func (m *Manager) undoPod(ctx context.Context, op Op, p *podEntry) error {
	if err := backward(ctx, m, op, m.podSteps(), p); err != nil {
		return err
	}
	if err := p.forget(func() error { return m.journal.DeletePod(p.key) }); err != nil {
		return err
	}
	m.index.removePod(p)
	m.unmeter(p.now.Load().CgroupPath)
	if op == OpRemovePod {
		return m.reached(op, pointForget)
	}
	return nil
}

// undoPodLater repeats undoPod until it succeeds.
func (m *Manager) undoPodLater(op Op, p *podEntry) {
	m.retry("remove pod "+string(p.key), func(ctx context.Context) error {
		return m.locked(ctx, p, func(ctx context.Context) error { return m.undoPod(ctx, op, p) })
	})
}

// locked runs do with the pod's lock held. A checkpoint that could not be ended is ended first: what is
// paused can't be stopped.
func (m *Manager) locked(ctx context.Context, p *podEntry, do func(context.Context) error) error {
	unlock, err := m.locks.Lock(ctx, p.key)
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.endCapture(ctx, p); err != nil {
		m.log.Warn("a checkpoint could not be ended", "pod", p.key, "error", err)
	}
	return do(ctx)
}

// StopPod ends the containers of a sandbox, detaches its network and gives back its namespaces. What
// is stopped, or not there, is no error.
func (m *Manager) StopPod(ctx context.Context, id string) error {
	p, err := m.index.pod(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if hasStopped(p) {
		return nil
	}
	p.stopping()
	_, err = m.actions.do(ctx, "stop "+string(p.key), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, m.locked(ctx, p, func(ctx context.Context) error { return m.stopPod(ctx, p) })
	})
	return err
}

func hasStopped(p *podEntry) bool {
	sb := p.now.Load()
	return sb.State == pod.SandboxNotReady && sb.Step == stopped
}

// stopPod walks back as far as StopPod goes. The pod's lock is held. The record says first that the
// sandbox is not ready, so that recovery finishes what a crash interrupts.
func (m *Manager) stopPod(ctx context.Context, p *podEntry) error {
	if s := p.now.Load().State; hasStopped(p) || s != pod.SandboxReady && s != pod.SandboxNotReady {
		return nil
	}
	err := p.mark(m.log, func(sb *pod.Sandbox) (*pod.Sandbox, error) {
		n, err := sb.To(pod.SandboxNotReady)
		if err == nil {
			n.Step = pointIntent
		}
		return n, err
	})
	if err != nil {
		return err
	}
	if err = m.reached(OpStopPod, pointIntent); err != nil {
		return err
	}
	if err = backward(ctx, m, OpStopPod, m.podSteps(), p); err != nil {
		return err
	}
	err = p.mark(m.log, func(sb *pod.Sandbox) (*pod.Sandbox, error) {
		n := *sb
		n.Step = stopped
		return &n, nil
	})
	if err != nil {
		return err
	}
	return m.reached(OpStopPod, pointRecord)
}

// RemovePod removes a sandbox with its containers, whatever state they are in. What is not there is
// no error.
func (m *Manager) RemovePod(ctx context.Context, id string) error {
	p, err := m.index.pod(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	p.stopping()
	_, err = m.actions.do(ctx, "remove "+string(p.key), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, m.locked(ctx, p, func(ctx context.Context) error { return m.removePod(ctx, p) })
	})
	return err
}

func (m *Manager) removePod(ctx context.Context, p *podEntry) error {
	if m.index.podByKey(p.key) != p {
		return nil
	}
	if p.now.Load().State != pod.SandboxCreating {
		if err := p.mark(m.log, func(sb *pod.Sandbox) (*pod.Sandbox, error) { return sb.To(pod.SandboxRemoving) }); err != nil {
			return err
		}
	}
	err := m.reached(OpRemovePod, pointIntent)
	if err == nil {
		err = m.undoPod(ctx, OpRemovePod, p)
	}
	if err != nil { // no list shows it any more, so nobody may ask again
		m.undoPodLater(OpRemovePod, p)
		return err
	}
	return nil
}

// Pod returns a sandbox as it is now.
func (m *Manager) Pod(_ context.Context, id string) (*pod.Sandbox, error) {
	p, err := m.index.pod(id)
	if err != nil {
		return nil, err
	}
	sb := p.seen()
	if sb == nil {
		return nil, fmt.Errorf("pod sandbox %s: %w", id, errdefs.ErrNotFound)
	}
	return sb, nil
}

// Pods returns every sandbox as it is now, oldest first.
func (m *Manager) Pods(context.Context) []*pod.Sandbox {
	var all []*pod.Sandbox
	for _, p := range m.index.allPods() {
		if sb := p.seen(); sb != nil {
			all = append(all, sb)
		}
	}
	return all
}

func (m *Manager) createSandbox(ctx context.Context, p *podEntry) error {
	made, err := p.engine.CreateSandbox(ctx, &p.now.Load().Spec, p.files)
	if err != nil {
		return err
	}
	err = p.change(func(sb *pod.Sandbox) (*pod.Sandbox, error) {
		n := *sb
		n.ID, n.NetNS, n.CgroupPath = made.ID, made.NetNS, made.CgroupPath
		return &n, nil
	})
	m.index.addPod(p)
	return err
}

func (m *Manager) stopSandbox(ctx context.Context, p *podEntry) error {
	return p.engine.StopSandbox(ctx, p.key)
}

func (m *Manager) removeSandbox(ctx context.Context, p *podEntry) error {
	return p.engine.RemoveSandbox(ctx, p.key)
}

func (m *Manager) startSandbox(ctx context.Context, p *podEntry) error {
	return p.engine.StartSandbox(ctx, p.key)
}

func (m *Manager) attach(ctx context.Context, p *podEntry) error {
	if p.now.Load().Spec.HostNetwork() {
		return nil
	}
	network, err := m.opts.Network.Attach(ctx, attachment(p.now.Load()))
	if err != nil {
		return err
	}
	err = p.change(func(sb *pod.Sandbox) (*pod.Sandbox, error) {
		n := *sb
		n.Network = network
		return &n, nil
	})
	if err != nil {
		return err
	}
	return m.writeHosts(p, network)
}

func (m *Manager) detach(ctx context.Context, p *podEntry) error {
	sb := p.now.Load()
	if sb.Spec.HostNetwork() {
		return nil
	}
	if err := m.opts.Network.Detach(ctx, attachment(sb)); err != nil {
		return err
	}
	p.note(func(sb pod.Sandbox) *pod.Sandbox { sb.Network = nil; return &sb })
	return nil
}

func attachment(sb *pod.Sandbox) *cni.Attachment {
	return &cni.Attachment{
		Key:          sb.Spec.Key,
		NetNS:        sb.NetNS,
		Metadata:     sb.Spec.Metadata,
		Ports:        sb.Spec.Ports,
		DNS:          sb.Spec.DNS,
		CgroupParent: sb.Spec.CgroupParent,
		Annotations:  sb.Spec.Annotations,
		Network:      sb.Network,
	}
}

// publishPod makes the sandbox one that lists show.
func (m *Manager) publishPod(_ context.Context, p *podEntry) error {
	return p.change(func(sb *pod.Sandbox) (*pod.Sandbox, error) { return sb.To(pod.SandboxReady) })
}
