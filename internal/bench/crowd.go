package bench

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Crowd says how many pods to run at once and how long to watch them.
type Crowd struct {
	Pods
	Counts []int         // of pods at which everything is measured, each larger than the one before
	Launch time.Duration // after which no more pods join for the next count; 0 is no bound
	Idle   time.Duration // how long nobody calls while the idle CPU time is taken
	Calls  int           // of each list, status and statistics call that are measured, after a fifth as many that are not
	Looks  time.Duration // after which none of them is repeated: some runtimes take seconds for one
	Events int           // exits whose event is waited for
	// Last, if set, is called at each count while the pods are still there.
	Last func(ctx context.Context, to Scope) error
	// Leave leaves the pods where they are when all is measured: the runtime ends with them.
	Leave bool
}

const (
	crowdWorkers = 4
	looksTime    = 5 * time.Second // where Looks is not given
	patience     = 10              // how many times that one of them may take
	few          = 10              // how many pods tell what one of their number costs
)

// Crowd runs pods side by side and adds what the runtime needs for them, and what calls take that
// look at all of them, for each count to a scope of its own.
func (t *Target) Crowd(ctx context.Context, c *Crowd, to func(count int) Scope) (err error) {
	g := &gathering{t: t, c: c}
	defer func() {
		if !c.Leave {
			err = errors.Join(err, t.disperse(context.WithoutCancel(ctx), g.pods))
		}
	}()
	for _, count := range c.Counts {
		if err = g.grow(ctx, count, to(count)); err != nil {
			return err
		}
		if err = g.look(ctx, to(count)); err != nil {
			return err
		}
	}
	return nil
}

// gathering is a crowd that grows.
type gathering struct {
	t    *Target
	c    *Crowd
	mu   sync.Mutex
	pods []made // guarded by mu while it grows
	dead int    // how many of the first have no process any more
}

// grow lets pods join until there are count, or as many as there is time for. Those around the tenth and
// the last join one after the other, and what each call takes is added; the others side by side.
func (g *gathering) grow(ctx context.Context, count int, to Scope) error {
	began := time.Now()
	inTime := func() bool { return g.c.Launch == 0 || time.Since(began) < g.c.Launch }
	for len(g.pods) < min(count, few+few/2) {
		which := ""
		if len(g.pods) >= few/2 {
			which = "10th"
		}
		if err := g.join(ctx, which, to); err != nil {
			return err
		}
	}
	work := make(chan struct{}, max(0, count-few-len(g.pods)))
	for range cap(work) {
		work <- struct{}{}
	}
	close(work)
	several, sctx := errgroup.WithContext(ctx)
	for range crowdWorkers {
		several.Go(func() error {
			for range work {
				if !inTime() {
					return nil
				}
				if err := g.join(sctx, "", to); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := several.Wait(); err != nil {
		return err
	}
	for i := 0; i < few && len(g.pods) < count; i++ {
		if err := g.join(ctx, "last", to); err != nil {
			return err
		}
	}
	to.Add("pods that joined in time", "", float64(len(g.pods)))
	if len(g.pods) < count {
		to.Note(fmt.Sprintf("%d of %d pods ran after %s, the time there was for them; its figures are at that many.",
			len(g.pods), count, time.Since(began).Round(time.Second)))
	}
	return nil
}

// join runs one more pod and adds what its calls took, if it is said which pod it is.
func (g *gathering) join(ctx context.Context, which string, to Scope) error {
	m, err := g.t.begin(ctx, &g.c.Pods, g.c.container(life), func(called string, call func() error) error {
		start := time.Now()
		answer := call()
		if which != "" {
			to.Took(called+", "+which, time.Since(start))
		}
		return answer
	})
	if m.sandbox != "" {
		g.mu.Lock()
		g.pods = append(g.pods, m)
		g.mu.Unlock()
	}
	return err
}

// look measures what there is to measure while the pods are there.
func (g *gathering) look(ctx context.Context, to Scope) error {
	t, c := g.t, g.c
	if err := t.rest(ctx, c, len(g.pods), to); err != nil {
		return err
	}
	last := g.pods[len(g.pods)-1]
	for _, call := range t.looks(last) {
		if err := g.repeat(ctx, call, to); err != nil {
			return err
		}
	}
	living := g.pods[g.dead:]
	living = living[:min(c.Events, len(living))]
	g.dead += len(living)
	if err := t.events(ctx, living, to); err != nil || c.Last == nil {
		return err
	}
	return c.Last(ctx, to)
}

// repeat makes a call as often as it is wanted and there is time. One that fails, or takes many times as long
// as all together may, is given up, and that is said: the others are measured all the same.
func (g *gathering) repeat(ctx context.Context, call look, to Scope) error {
	bound := cmp.Or(g.c.Looks, looksTime)
	within, cancel := context.WithTimeout(ctx, patience*bound)
	defer cancel()
	unmeasured := g.c.Calls / 5 // a kubelet asks for the same again and again
	for first, i := time.Now(), -unmeasured; i < g.c.Calls && (i <= 0 || time.Since(first) < bound); i++ {
		if i < 0 && time.Since(first) > bound/2 {
			i = 0
		}
		start := time.Now()
		err := call.do(within)
		switch {
		case err == nil && i < 0:
		case err == nil:
			to.Took(call.name, time.Since(start))
		case unimplemented(err):
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %s: %w", g.t.Name, call.name, err)
		case within.Err() != nil || ended(err):
			to.Note(call.name + " had no answer after " + time.Since(start).Round(time.Second).String() + ".")
			return nil
		default:
			to.Note(call.name + " failed: " + status.Convert(err).Message() + ".")
			return nil
		}
	}
	return nil
}

// rest watches the runtime while nobody calls it.
func (t *Target) rest(ctx context.Context, c *Crowd, pods int, to Scope) error {
	if t.Cgroup == nil {
		return nil
	}
	if err := wait(ctx, time.Second); err != nil { // what the last pod has set off
		return err
	}
	before, err := t.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	if err = wait(ctx, c.Idle); err != nil {
		return err
	}
	after, err := t.cpu()
	if err != nil {
		return err
	}
	to.Add("idle CPU", "%", 100*float64(after-before)/float64(time.Since(began)))
	m, err := t.Memory()
	if err != nil {
		return err
	}
	to.Add("daemon", "MiB PSS", float64(m.Daemon)/1024)
	to.Add("helpers, a pod", "KiB PSS", float64(m.Helpers)/float64(pods))
	return nil
}

type look struct {
	name string
	do   func(context.Context) error
}

// looks are the calls that change nothing.
func (t *Target) looks(one made) []look {
	rt := t.Runtime
	return []look{
		{"Version", func(ctx context.Context) error { _, err := rt.Version(ctx, &cri.VersionRequest{}); return err }},
		{"Status", func(ctx context.Context) error { _, err := rt.Status(ctx, &cri.StatusRequest{}); return err }},
		{"ListPodSandbox", func(ctx context.Context) error {
			_, err := rt.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
			return err
		}},
		{"ListContainers", func(ctx context.Context) error {
			_, err := rt.ListContainers(ctx, &cri.ListContainersRequest{})
			return err
		}},
		{"PodSandboxStatus", func(ctx context.Context) error {
			_, err := rt.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: one.sandbox})
			return err
		}},
		{"ContainerStatus", func(ctx context.Context) error {
			_, err := rt.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: one.container})
			return err
		}},
		{"ContainerStats", func(ctx context.Context) error {
			_, err := rt.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: one.container})
			return err
		}},
		{"ListContainerStats", func(ctx context.Context) error {
			_, err := rt.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
			return err
		}},
		{"ListPodSandboxStats", func(ctx context.Context) error {
			_, err := rt.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
			return err
		}},
		{"ListPodSandboxMetrics", func(ctx context.Context) error {
			_, err := rt.ListPodSandboxMetrics(ctx, &cri.ListPodSandboxMetricsRequest{})
			return err
		}},
		{"ListImages", func(ctx context.Context) error {
			_, err := t.Images.ListImages(ctx, &cri.ListImagesRequest{})
			return err
		}},
		{"ImageFsInfo", func(ctx context.Context) error {
			_, err := t.Images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
			return err
		}},
	}
}

// events kills containers behind the runtime's back and adds how long it took until an event told
// of it.
func (t *Target) events(ctx context.Context, pods []made, to Scope) error {
	if len(pods) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	stream, err := t.Runtime.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err != nil {
		return fmt.Errorf("%s: GetContainerEvents: %w", t.Name, err)
	}
	for _, m := range pods {
		pid, err := t.pid(ctx, m.container)
		if err != nil {
			return err
		}
		start := time.Now()
		if err = unix.Kill(pid, unix.SIGKILL); err != nil {
			return fmt.Errorf("%s: kill %d: %w", t.Name, pid, err)
		}
		for {
			e, err := stream.Recv()
			if unimplemented(err) || errors.Is(err, io.EOF) { // so ends CRI-O the stream, whose events are off
				return nil
			}
			if err != nil {
				return fmt.Errorf("%s: event of an exit: %w", t.Name, err)
			}
			if e.ContainerId == m.container && e.ContainerEventType == cri.ContainerEventType_CONTAINER_STOPPED_EVENT {
				break
			}
		}
		to.Took("event of an exit", time.Since(start))
	}
	return nil
}

// pid is that of a container's process, which every runtime tells in its verbose status.
func (t *Target) pid(ctx context.Context, container string) (int, error) {
	r, err := t.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: container, Verbose: true})
	if err != nil {
		return 0, fmt.Errorf("%s: ContainerStatus: %w", t.Name, err)
	}
	var info struct {
		Pid int `json:"pid"`
	}
	if err = json.Unmarshal([]byte(r.Info["info"]), &info); err == nil && info.Pid > 1 {
		return info.Pid, nil
	}
	if pid, err := strconv.Atoi(r.Info["pid"]); err == nil && pid > 1 {
		return pid, nil
	}
	return 0, fmt.Errorf("%s: the verbose status of %s tells no pid", t.Name, container)
}

// disperse removes pods, some at a time.
func (t *Target) disperse(ctx context.Context, pods []made) error {
	var g errgroup.Group
	g.SetLimit(crowdWorkers)
	for _, m := range pods {
		g.Go(func() error { return t.remove(ctx, m.sandbox) })
	}
	return g.Wait()
}

// unimplemented says that a runtime does not have a call.
func unimplemented(err error) bool { return status.Code(err) == codes.Unimplemented }

// ended says that a call's time is over. The server knows the deadline too: it may see it first, and its stream's
// end reaches the client before the client's own clock has run out.
func ended(err error) bool {
	code := status.Code(err)
	return code == codes.Canceled || code == codes.DeadlineExceeded
}

// wait lets time pass: what is measured is that nothing happens.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
