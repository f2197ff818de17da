package docker

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"gantry/internal/pod"
)

// object is what is remembered of one of Docker's containers, a pod's pause container included.
// Everything in it can be had from Docker again.
type object struct {
	id     string
	cgroup string // "" until it is known
	tty    bool
	// files of its cgroup that Docker has no word for, by name: see files.go.
	files map[string]string
	// started says that it was let go: Docker would run a container that has ended once more.
	started bool
	killed  bool      // a SIGKILL was sent to it from here
	exit    *pod.Exit // once it has ended
}

// objects are what is remembered, by key.
type objects struct {
	mu    sync.Mutex
	byKey map[pod.Key]object // guarded by mu
}

func (o *objects) get(key pod.Key) (object, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	is, ok := o.byKey[key]
	return is, ok
}

func (o *objects) put(key pod.Key, is object) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.byKey[key] = is
}

// change changes what is remembered under key, if anything is.
func (o *objects) change(key pod.Key, change func(*object)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if is, ok := o.byKey[key]; ok {
		change(&is)
		o.byKey[key] = is
	}
}

func (o *objects) drop(key pod.Key) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.byKey, key)
}

// find returns what Docker has under key, from memory where it is there, else by its label. What is
// not there is errdefs.ErrNotFound.
func (e *Engine) find(ctx context.Context, key pod.Key) (object, error) {
	if is, ok := e.objects.get(key); ok {
		return is, nil
	}
	ids, err := e.idsOf(ctx, key)
	if err != nil {
		return object{}, err
	}
	if len(ids) == 0 {
		return object{}, fmt.Errorf("container %s: %w", key.Short(), errdefs.ErrNotFound)
	}
	if _, err = e.node(ctx); err != nil { // it tells where cgroups are
		return object{}, err
	}
	found, err := e.inspect(ctx, ids[0])
	if err != nil {
		return object{}, err
	}
	is := e.objectOf(found)
	e.objects.put(key, is)
	return is, nil
}

// idsOf asks Docker for what carries the key.
func (e *Engine) idsOf(ctx context.Context, key pod.Key) ([]string, error) {
	if e.heirlooms.has(key) {
		return []string{string(key)}, nil
	}
	list, err := e.list(ctx, LabelKey+"="+string(key))
	ids := make([]string, 0, len(list))
	for i := range list {
		ids = append(ids, list[i].ID)
	}
	return ids, err
}

// list lists the containers with a label, running or not.
func (e *Engine) list(ctx context.Context, label string) ([]container.Summary, error) {
	all, err := call(ctx, e.daemon, func(ctx context.Context) (client.ContainerListResult, error) {
		return e.daemon.api.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", label)})
	})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return all.Items, nil
}

func (e *Engine) inspect(ctx context.Context, id string) (*container.InspectResponse, error) {
	r, err := call(ctx, e.daemon, func(ctx context.Context) (client.ContainerInspectResult, error) {
		return e.daemon.api.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	})
	if err != nil {
		return nil, fmt.Errorf("inspect: %w", err)
	}
	if r.Container.State == nil || r.Container.Config == nil || r.Container.HostConfig == nil {
		return nil, fmt.Errorf("inspect %s: docker's answer is incomplete: %w", id, errdefs.ErrInternal)
	}
	return &r.Container, nil
}

func (e *Engine) objectOf(c *container.InspectResponse) object {
	is := object{
		id: c.ID, tty: c.Config.Tty, cgroup: e.cgroupOf(c),
		started: c.State.Status != container.StateCreated, files: decodeFiles(c.Config.Labels[labelFiles]),
	}
	if hasEnded(c.State) {
		is.exit = exitOf(c.State)
	}
	return is
}

// create makes a container under a name of dockershim's form. Where another has the name, an attempt
// of ours that is still being removed for one, the key is put behind it. One that carries our key is
// an earlier try of this very call, whose answer was lost, and is returned with made false.
func (e *Engine) create(ctx context.Context, key pod.Key, opts client.ContainerCreateOptions) (id string, made bool, err error) {
	// A daemon whose client is gone goes on: the answer is waited for, so that what it made is known.
	detached := context.WithoutCancel(ctx)
	plain := opts.Name
	var conflict error
	for _, name := range []string{plain, plain + "_" + string(key[:min(8, len(key))])} {
		opts.Name = name
		r, err := call(detached, e.daemon, func(ctx context.Context) (client.ContainerCreateResult, error) {
			return e.daemon.api.ContainerCreate(ctx, opts)
		})
		if err == nil {
			for _, w := range r.Warnings {
				e.log.Warn("docker warns", "container", key, "warning", w)
			}
			if len(r.Warnings) > 0 {
				err = e.kept(detached, r.ID, &opts.HostConfig.Resources)
			}
			return r.ID, true, err
		}
		if !errdefs.IsConflict(err) {
			return "", false, err
		}
		conflict = err
		ids, err := e.idsOf(detached, key)
		if err != nil {
			return "", false, err
		}
		if len(ids) > 0 {
			return ids[0], false, nil
		}
	}
	return "", false, conflict
}

// kept says whether a new container has the limits that were asked for: what the kernel lacks Docker discards, and
// only warns of it.
func (e *Engine) kept(ctx context.Context, id string, asked *container.Resources) error {
	c, err := e.inspect(ctx, id)
	if err != nil {
		return err
	}
	for field, of := range map[string]func(*container.Resources) int64{
		"memory_limit_in_bytes":      func(r *container.Resources) int64 { return r.Memory },
		"memory_swap_limit_in_bytes": func(r *container.Resources) int64 { return r.MemorySwap },
		"memory reservation":         func(r *container.Resources) int64 { return r.MemoryReservation },
		"swappiness":                 func(r *container.Resources) int64 { return valueOf(r.MemorySwappiness) },
		"pids":                       func(r *container.Resources) int64 { return valueOf(r.PidsLimit) },
		"cpu_shares":                 func(r *container.Resources) int64 { return r.CPUShares },
		"cpu_period":                 func(r *container.Resources) int64 { return r.CPUPeriod },
		"cpu_quota":                  func(r *container.Resources) int64 { return r.CPUQuota },
		"cpuset_cpus":                func(r *container.Resources) int64 { return int64(len(r.CpusetCpus)) },
		"cpuset_mems":                func(r *container.Resources) int64 { return int64(len(r.CpusetMems)) },
	} {
		if want := of(asked); want != 0 && of(&c.HostConfig.Resources) != want {
			return refused(field, "Docker discards it on this node")
		}
	}
	if wish := asked.OomKillDisable; wish != nil && *wish && !valueOf(c.HostConfig.OomKillDisable) {
		return refused("disable_oom_killer", "Docker discards it on this node")
	}
	return nil
}

func valueOf[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// remove removes a container by id, killing it first, with the volumes that its image declares.
func (e *Engine) remove(ctx context.Context, id string) error {
	_, err := call(ctx, e.daemon, func(ctx context.Context) (client.ContainerRemoveResult, error) {
		return e.daemon.api.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	})
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case errdefs.IsConflict(err): // its removal is under way
		return e.awaitRemoval(ctx, id)
	}
	return err
}

func (e *Engine) awaitRemoval(ctx context.Context, id string) error {
	_, err := call(ctx, e.daemon, func(ctx context.Context) (struct{}, error) {
		w := e.daemon.api.ContainerWait(ctx, id, client.ContainerWaitOptions{Condition: container.WaitConditionRemoved})
		select {
		case <-w.Result:
			return struct{}{}, nil
		case err := <-w.Error:
			return struct{}{}, err
		}
	})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// removeAll removes whatever carries the key and forgets it.
func (e *Engine) removeAll(ctx context.Context, key pod.Key) error {
	var ids []string
	if is, ok := e.objects.get(key); ok {
		ids = []string{is.id}
	} else {
		var err error
		if ids, err = e.idsOf(ctx, key); err != nil {
			return err
		}
	}
	for _, id := range ids {
		if err := e.remove(ctx, id); err != nil {
			return fmt.Errorf("remove container %s: %w", key.Short(), err)
		}
	}
	e.objects.drop(key)
	e.letGo(key)
	return nil
}
