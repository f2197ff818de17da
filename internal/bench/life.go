package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Lives says how many lives of pods to measure, how many of them at once.
type Lives struct {
	Pods
	Count   int
	Workers int
}

// Life runs pods from their first call to their last, and adds what each call and a whole life took,
// the CPU time of a life, and pods a second.
func (t *Target) Life(ctx context.Context, l *Lives, to Scope) error {
	before, err := t.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	work := make(chan struct{}, l.Count)
	for range l.Count {
		work <- struct{}{}
	}
	close(work)
	for range max(1, l.Workers) {
		g.Go(func() error {
			for range work {
				if failed := t.live(gctx, &l.Pods, to); failed != nil {
					return failed
				}
			}
			return nil
		})
	}
	if err = g.Wait(); err != nil {
		return err
	}
	to.Add("pods a second", "1/s", float64(l.Count)/time.Since(began).Seconds())
	if t.Cgroup == nil {
		return nil
	}
	after, err := t.cpu()
	if err != nil {
		return err
	}
	to.Add("CPU of a life", "ms", float64((after-before).Microseconds())/1000/float64(l.Count))
	return nil
}

// cpu is 0 for a runtime whose cgroup is not known.
func (t *Target) cpu() (time.Duration, error) {
	if t.Cgroup == nil {
		return 0, nil
	}
	return t.Cgroup.CPU()
}

// live is one life. How long its program takes until it can be asked to end belongs to no call and not
// to the life: on a busy machine it is more than the calls.
func (t *Target) live(ctx context.Context, p *Pods, to Scope) (err error) {
	began := time.Now()
	timed := func(name string, call func() error) error {
		start := time.Now()
		failed := call()
		to.Took(name, time.Since(start))
		return failed
	}
	m, err := t.begin(ctx, p, p.container(life), timed)
	defer func() {
		if err != nil && m.sandbox != "" {
			_ = t.remove(context.WithoutCancel(ctx), m.sandbox) // the first error is the one that counts
		}
	}()
	if err != nil {
		return err
	}
	took := time.Since(began)
	to.Took("Run+Create+Start", took)
	if err = t.awaitLife(ctx, m); err != nil {
		return err
	}
	began = time.Now()
	var stopped time.Time
	steps := []struct {
		name string
		call func() error
	}{
		{"ExecSync", func() error { return t.exec(ctx, m.container) }},
		{"StopContainer", func() error {
			_, failed := t.Runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: m.container, Timeout: 10})
			return failed
		}},
		{"RemoveContainer", func() error {
			_, failed := t.Runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: m.container})
			stopped = time.Now()
			return failed
		}},
		{"StopPodSandbox", func() error {
			_, failed := t.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: m.sandbox})
			return failed
		}},
		{"RemovePodSandbox", func() error {
			_, failed := t.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: m.sandbox})
			return failed
		}},
	}
	for _, s := range steps {
		if err = timed(s.name, s.call); err != nil {
			return fmt.Errorf("%s: %s: %w", t.Name, s.name, err)
		}
	}
	to.Took("Stop+Remove sandbox", time.Since(stopped))
	to.Took("a whole life", took+time.Since(began))
	return nil
}

// lifeTime bounds how long a program takes until it can be asked to end.
const lifeTime = time.Minute

func (t *Target) awaitLife(ctx context.Context, m made) error {
	ctx, cancel := context.WithTimeout(ctx, lifeTime)
	defer cancel()
	if err := awaitLine(ctx, m.logPath, lifeLine); err != nil {
		return fmt.Errorf("%s: %w", t.Name, err)
	}
	return nil
}

func (t *Target) exec(ctx context.Context, container string) error {
	r, err := t.Runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: []string{"true"}, Timeout: 30})
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Stderr)
	}
	return err
}

// Execs runs commands in one container at a steady rate (per second) and adds what each took and
// the CPU time of one.
func (t *Target) Execs(ctx context.Context, p *Pods, rate, count int, to Scope) (err error) {
	m, err := t.launch(ctx, p, life)
	defer func() {
		if m.sandbox != "" {
			err = errors.Join(err, t.remove(context.WithoutCancel(ctx), m.sandbox))
		}
	}()
	if err != nil {
		return err
	}
	before, err := t.cpu()
	if err != nil {
		return err
	}
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	g, gctx := errgroup.WithContext(ctx)
	var mu sync.Mutex
	var late int // guarded by mu
	for range count {
		due := <-tick.C
		g.Go(func() error {
			if failed := t.exec(gctx, m.container); failed != nil {
				return fmt.Errorf("%s: ExecSync: %w", t.Name, failed)
			}
			took := time.Since(due)
			to.Took("ExecSync at "+strconv.Itoa(rate)+" a second", took)
			if took > time.Second {
				mu.Lock()
				late++
				mu.Unlock()
			}
			return nil
		})
	}
	if err = g.Wait(); err != nil {
		return err
	}
	to.Add("later than a second", "", float64(late))
	if t.Cgroup == nil {
		return nil
	}
	after, err := t.cpu()
	to.Add("CPU of an exec", "ms", float64((after-before).Microseconds())/1000/float64(count))
	return err
}
