package lifecycle

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

// Status checks the engines and the network now. The default engine decides whether the runtime is
// ready: pods of another that fails say so themselves, and Verbose tells.
func (m *Manager) Status(ctx context.Context) (*pod.NodeStatus, error) {
	h := m.handlers.Load()
	s := &pod.NodeStatus{
		Handlers:      slices.Sorted(maps.Keys(h.engines)),
		Features:      h.features,
		SystemdCgroup: m.opts.SystemdCgroup,
		Verbose:       make(map[string]string),
	}
	names := slices.Sorted(maps.Keys(m.opts.Engines))
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { errs[i] = m.check(ctx, "engine "+name, m.opts.Engines[name].Status) })
	}
	wg.Go(func() { s.Network = m.check(ctx, "network", m.opts.Network.Status) })
	wg.Wait()
	for i, name := range names {
		if name == h.engines[""] {
			s.Runtime = errs[i]
		}
		s.Verbose["engine."+name] = word(errs[i])
	}
	s.Verbose["network"] = word(s.Network)
	m.sayWhatHangs(s.Verbose)
	m.sayWhatIsPulled(s.Verbose)
	return s, nil
}

// sayWhatHangs names every pod and container that is at a step, and for how long.
func (m *Manager) sayWhatHangs(verbose map[string]string) {
	for _, p := range m.index.allPods() {
		sb := p.now.Load()
		if text := p.said(string(sb.State), sb.Step, p.seen() != nil); text != "" {
			verbose["pod."+p.key.Short()] = sb.Spec.Metadata.Namespace + "/" + sb.Spec.Metadata.Name + ": " + text
		}
	}
	for _, c := range m.index.allContainers() {
		is := c.now.Load()
		if text := c.said(string(is.State), is.Step, c.seen() != nil); text != "" {
			verbose["container."+c.key.Short()] = is.Spec.Name + ": " + text
		}
	}
}

// check bounds a check also when what it asks ignores its context. A check that hangs is joined by
// the next instead of piling up. What is asked has somewhat less time than who waits: who heeds its
// context can say what hangs.
func (m *Manager) check(ctx context.Context, what string, ask func(context.Context) error) error {
	within := func(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
		return context.WithTimeoutCause(ctx, d, fmt.Errorf("%s did not answer within %v: %w", what, d, errdefs.ErrUnavailable))
	}
	ctx, cancel := within(ctx, m.times.Status)
	defer cancel()
	_, err := m.actions.do(ctx, "check "+what, func(own context.Context) (struct{}, error) {
		own, cancel := within(own, m.times.Status*9/10)
		defer cancel()
		return struct{}{}, ask(own)
	})
	return err
}

func word(err error) string {
	if err == nil {
		return "ready"
	}
	return err.Error()
}
