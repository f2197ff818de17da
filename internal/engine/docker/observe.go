package docker

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"

	"gantry/internal/engine"
	"gantry/internal/netns"
	"gantry/internal/pod"
)

// inspections is how many containers are looked at at once when all are listed.
const inspections = 8

// List asks Docker for everything that carries one of our keys or was taken over, and looks at what runs: a list tells
// no process. That happens at a start and after the event stream broke, not for clients' lists.
func (e *Engine) List(ctx context.Context) (engine.Inventory, error) {
	if _, err := e.node(ctx); err != nil { // it tells where cgroups are
		return engine.Inventory{}, err
	}
	summaries, err := e.list(ctx, labelType)
	if err != nil {
		return engine.Inventory{}, err
	}
	summaries = slices.DeleteFunc(summaries, func(s container.Summary) bool { return e.keyOf(s.ID, s.Labels) == "" })
	infos := make([]*engine.ContainerInfo, len(summaries))
	errs := make([]error, len(summaries))
	var wg sync.WaitGroup
	turns := make(chan struct{}, inspections)
	for i := range summaries {
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			infos[i], errs[i] = e.look(ctx, &summaries[i])
		})
	}
	wg.Wait()
	var inv engine.Inventory
	for i, info := range infos {
		switch {
		case errdefs.IsNotFound(errs[i]): // removed meanwhile
		case errs[i] != nil:
			return engine.Inventory{}, errs[i]
		case summaries[i].Labels[labelType] == typeSandbox:
			inv.Sandboxes = append(inv.Sandboxes, e.sandboxInfo(info, &summaries[i]))
		default:
			inv.Containers = append(inv.Containers, *info)
		}
	}
	return inv, nil
}

// look makes a container's state out of its line in a list, and what the list does not say.
func (e *Engine) look(ctx context.Context, s *container.Summary) (*engine.ContainerInfo, error) {
	key := e.keyOf(s.ID, s.Labels)
	if is, ok := e.objects.get(key); ok && is.exit != nil && is.id == s.ID {
		return &engine.ContainerInfo{Key: key, ID: s.ID, State: pod.ContainerExited, CgroupPath: is.cgroup, Exit: is.exit}, nil
	}
	c, err := e.inspect(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	is := e.objectOf(c)
	e.objects.put(key, is)
	info := &engine.ContainerInfo{Key: key, ID: c.ID, State: stateOf(c.State), CgroupPath: is.cgroup, Exit: is.exit}
	if info.State == pod.ContainerRunning {
		info.Pid = c.State.Pid
		e.finishFiles(is)
	}
	if s.Labels[labelType] != typeSandbox && is.started && !e.heirlooms.has(key) {
		if err := e.opts.Logs.Follow(ctx, key, c.ID); err != nil {
			e.log.Warn("the log of a container is not followed", "container", key, "error", err)
		}
	}
	return info, nil
}

func (e *Engine) sandboxInfo(info *engine.ContainerInfo, s *container.Summary) engine.SandboxInfo {
	out := engine.SandboxInfo{Key: info.Key, ID: info.ID, Ready: info.State == pod.ContainerRunning}
	if s.HostConfig.NetworkMode != "host" {
		out.NetNS = e.netNS(info.Key)
		out.Ready = out.Ready && netns.IsPinned(out.NetNS)
	}
	return out
}

func stateOf(s *container.State) pod.ContainerState {
	switch {
	case s.Running:
		return pod.ContainerRunning
	case s.Status == container.StateCreated:
		return pod.ContainerCreated
	}
	return pod.ContainerExited
}

func hasEnded(s *container.State) bool { return stateOf(s) == pod.ContainerExited }

func exitOf(s *container.State) *pod.Exit {
	x := &pod.Exit{Code: int32(s.ExitCode), OOMKilled: s.OOMKilled}
	if at, err := time.Parse(time.RFC3339Nano, s.FinishedAt); err == nil && at.Year() > 1 {
		x.At = at
	}
	return x
}

// cgroupOf is where a container's processes are, "" while the daemon's driver is not known.
func (e *Engine) cgroupOf(c *container.InspectResponse) string {
	n := e.known.Load()
	if n == nil {
		return ""
	}
	return n.containerCgroup(c.HostConfig.CgroupParent, c.ID)
}

// Watch follows Docker's events. What had ended before is told first. The channel is closed when the
// stream breaks, and when a daemon that hung answers again: it may have done meanwhile what a call
// that was given up had asked for.
func (e *Engine) Watch(ctx context.Context) (<-chan engine.Event, error) {
	if _, err := e.node(ctx); err != nil { // the stream comes up with the daemon, which may be another
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := e.stream(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	e.images.forget(true)
	inv, err := e.List(ctx)
	if err != nil {
		e.images.forget(false)
		cancel()
		return nil, err
	}
	w := &watcher{engine: e, out: make(chan engine.Event), told: make(map[pod.Key]bool)}
	w.held, w.late = make(map[pod.Key]pod.Exit), make(chan pod.Key)
	woken := e.daemon.woken()
	go func() {
		defer close(w.out)
		defer cancel()
		w.run(ctx, stream, inv, woken)
		e.images.forget(false)
		e.known.Store(nil)
	}()
	return w.out, nil
}

// stream opens Docker's events about containers and images, from this moment on: Docker answers a moment before
// it begins to listen, and repeats what happened between.
func (e *Engine) stream(ctx context.Context) (client.EventsResult, error) {
	filters := make(client.Filters).Add("type", string(events.ContainerEventType), string(events.ImageEventType)).
		Add("event", string(events.ActionDie), string(events.ActionOOM))
	for _, a := range imageEvents {
		filters.Add("event", string(a))
	}
	since := time.Now().Format(time.RFC3339Nano)
	if err := e.daemon.check(ctx); err != nil {
		return client.EventsResult{}, err
	}
	opened := make(chan client.EventsResult, 1)
	go func() { opened <- e.daemon.api.Events(ctx, client.EventsListOptions{Since: since, Filters: filters}) }()
	t := time.NewTimer(e.daemon.patience)
	defer t.Stop()
	select {
	case s := <-opened:
		return s, nil
	case <-t.C:
		return client.EventsResult{}, fmt.Errorf("docker at %s gives no events: %w", e.daemon.endpoint, errdefs.ErrUnavailable)
	}
}

// watcher tells one caller of Watch what happens, each exit once.
type watcher struct {
	engine *Engine
	out    chan engine.Event
	told   map[pod.Key]bool

	held map[pod.Key]pod.Exit // that may be OOM kills: see oom.go
	late chan pod.Key         // of held, to be told as they are
}

func (w *watcher) run(ctx context.Context, stream client.EventsResult, inv engine.Inventory, woken <-chan struct{}) {
	for _, c := range inv.Containers {
		if c.Exit != nil && !w.exit(ctx, c.Key, *c.Exit) {
			return
		}
	}
	for {
		select {
		case m := <-stream.Messages:
			if !w.message(ctx, &m) {
				return
			}
		case key := <-w.late:
			if !w.release(ctx, key, false) {
				return
			}
		case err := <-stream.Err:
			w.engine.log.Info("docker's events ended", "error", err)
			return
		case <-woken:
			return
		case <-ctx.Done():
			return
		}
	}
}

// message handles one event of Docker's and says whether to go on.
func (w *watcher) message(ctx context.Context, m *events.Message) bool {
	if m.Type == events.ImageEventType {
		w.engine.images.changed()
		return true
	}
	key := w.engine.keyOf(m.Actor.ID, m.Actor.Attributes)
	if key == "" {
		return true
	}
	if m.Action == events.ActionOOM {
		return w.send(ctx, engine.Event{Key: key}) && w.release(ctx, key, true)
	}
	exit := w.engine.exited(ctx, key, m)
	if w.engine.mayBeOOM(key, exit) && !w.told[key] {
		w.hold(ctx, key, exit)
		return true
	}
	return w.exit(ctx, key, exit)
}

func (w *watcher) exit(ctx context.Context, key pod.Key, exit pod.Exit) bool {
	if w.told[key] {
		return true
	}
	w.told[key] = true
	w.engine.objects.change(key, func(o *object) { o.exit = &exit })
	return w.send(ctx, engine.Event{Key: key, Exit: &exit})
}

func (w *watcher) send(ctx context.Context, ev engine.Event) bool {
	select {
	case w.out <- ev:
		return true
	case <-ctx.Done():
		return false
	}
}

// exited finds out how a container ended: the event has the code alone.
func (e *Engine) exited(ctx context.Context, key pod.Key, m *events.Message) pod.Exit {
	if is, ok := e.objects.get(key); ok && is.exit != nil {
		return *is.exit
	}
	code, err := strconv.ParseInt(m.Actor.Attributes["exitCode"], 10, 32)
	exit := pod.Exit{Code: int32(code), At: time.Unix(0, m.TimeNano)}
	if err != nil {
		exit.Code, exit.Unknown = 255, true
	}
	if c, err := e.inspect(ctx, m.Actor.ID); err == nil && hasEnded(c.State) {
		exit = *exitOf(c.State)
	}
	return exit
}
