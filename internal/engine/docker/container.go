package docker

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"gantry/internal/engine"
	"gantry/internal/ocispec"
	"gantry/internal/pod"
)

// CreateContainer makes a container that joins the namespaces of the pod's pause container. It has no
// process before it is started.
func (e *Engine) CreateContainer(ctx context.Context, req *engine.Create) (engine.Created, error) {
	if err := ctx.Err(); err != nil {
		return engine.Created{}, context.Cause(ctx)
	}
	n, err := e.node(ctx)
	if err != nil {
		return engine.Created{}, err
	}
	opts, err := n.asked(req)
	if err != nil {
		return engine.Created{}, err
	}
	key := req.Spec.Key
	driver, options, err := e.opts.Logs.Config(ctx, key, req.Spec.LogPath, req.Spec.LogBounds)
	if err != nil {
		return engine.Created{}, fmt.Errorf("log of the container: %w", err)
	}
	opts.HostConfig.LogConfig = container.LogConfig{Type: driver, Config: options}
	id, err := e.createAs(ctx, req, opts)
	if err != nil {
		if errdefs.IsNotFound(err) { // of the image: somebody has removed it just now
			e.images.changed()
		}
		err = fmt.Errorf("create container: %w", err)
		return engine.Created{}, undo(ctx, err, func(ctx context.Context) error { return e.RemoveContainer(ctx, key) })
	}
	is := object{id: id, tty: req.Spec.TTY, cgroup: n.containerCgroup(opts.HostConfig.CgroupParent, id)}
	is.files = decodeFiles(opts.Config.Labels[labelFiles])
	e.objects.put(key, is)
	return engine.Created{ID: id, CgroupPath: is.cgroup, StopSignal: req.Image.Config.StopSignal, User: e.user(ctx, id, req)}, nil
}

// asked is the request to Docker, with what plugins changed and the node's side of mounts looked at.
func (n *node) asked(req *engine.Create) (client.ContainerCreateOptions, error) {
	r := *req
	if r.Adjust != nil {
		r.Spec, r.Adjust = r.Adjust.Fold(r.Spec)
	}
	spec := *r.Spec
	r.Spec = &spec
	var err error
	if spec.Mounts, err = ocispec.ResolveMounts(spec.Mounts); err != nil {
		return client.ContainerCreateOptions{}, err
	}
	opts, err := n.container(&r)
	if err != nil || r.Adjust == nil {
		return opts, err
	}
	return opts, n.adjust(opts.HostConfig, r.Adjust)
}

// StartContainer starts a container that never ran. Docker would run one that has ended again, so
// that one is left alone.
func (e *Engine) StartContainer(ctx context.Context, key pod.Key) (engine.Started, error) {
	is, err := e.find(ctx, key)
	if err != nil {
		return engine.Started{}, err
	}
	if e.heirlooms.has(key) {
		return engine.Started{}, fmt.Errorf("container %s is of an earlier runtime: %w", key.Short(), errdefs.ErrFailedPrecondition)
	}
	if !is.started {
		if err = e.opts.Logs.Follow(ctx, key, is.id); err != nil {
			return engine.Started{}, fmt.Errorf("log of the container: %w", err)
		}
		if err = e.startOrEnd(ctx, key, is.id); err != nil {
			return engine.Started{}, startError(err)
		}
		e.objects.change(key, func(o *object) { o.started = true })
	}
	if err = e.writeFiles(is); err != nil {
		return engine.Started{}, undo(ctx, err, func(ctx context.Context) error { return e.kill(ctx, key, is.id, "SIGKILL") })
	}
	c, err := e.inspect(ctx, is.id)
	if err != nil {
		return engine.Started{}, err
	}
	return engine.Started{Pid: c.State.Pid, CgroupPath: e.cgroupOf(c)}, nil
}

// startOrEnd starts a container. A daemon whose client is gone goes on: one that it starts when ctx has ended is killed.
func (e *Engine) startOrEnd(ctx context.Context, key pod.Key, id string) error {
	detached := context.WithoutCancel(ctx)
	answered := make(chan error, 1)
	go func() { answered <- e.start(detached, id) }()
	select {
	case err := <-answered:
		return err
	case <-ctx.Done():
	}
	go func() {
		if <-answered != nil {
			return
		}
		undoing, cancel := context.WithTimeout(detached, undoTime)
		defer cancel()
		if err := e.kill(undoing, key, id, "SIGKILL"); err != nil {
			e.log.Warn("a container that nobody wants started any more could not be killed", "container", key, "error", err)
		}
	}()
	return context.Cause(ctx)
}

// startError: what Docker calls a conflict or a bad parameter when a program can't be run is the
// container's fault, and what it says of it is one line of the runtime's.
func startError(err error) error {
	if errdefs.IsConflict(err) {
		return fmt.Errorf("%w: %s", errdefs.ErrFailedPrecondition, oneLine(err))
	}
	return err
}

func (e *Engine) start(ctx context.Context, id string) error {
	_, err := call(ctx, e.daemon, func(ctx context.Context) (client.ContainerStartResult, error) {
		return e.daemon.api.ContainerStart(ctx, id, client.ContainerStartOptions{})
	})
	return err
}

// kill sends a signal to the main process. One that has ended, or is gone, is no error.
func (e *Engine) kill(ctx context.Context, key pod.Key, id, signal string) error {
	if n, bad := (engine.Signal{Name: signal}).Number(); bad == nil && n == unix.SIGKILL {
		e.objects.change(key, func(o *object) { o.killed = true })
	}
	_, err := call(ctx, e.daemon, func(ctx context.Context) (client.ContainerKillResult, error) {
		return e.daemon.api.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: signal})
	})
	if errdefs.IsConflict(err) || errdefs.IsNotFound(err) { // it does not run
		return nil
	}
	return err
}

// SignalContainer sends a signal; a container that does not run is no error.
func (e *Engine) SignalContainer(ctx context.Context, key pod.Key, s engine.Signal) error {
	signal, err := s.Number()
	if err != nil {
		return err
	}
	is, err := e.find(ctx, key)
	if err != nil {
		return err
	}
	if !s.All || is.cgroup == "" {
		return e.kill(ctx, key, is.id, s.Name)
	}
	if signal != unix.SIGKILL {
		return e.signalAll(is.cgroup, signal)
	}
	if err := e.kill(ctx, key, is.id, s.Name); err != nil {
		return err
	}
	// What shares the pod's PID namespace outlives the main process.
	return e.cgroups.Kill(is.cgroup)
}

func (e *Engine) signalAll(cgroup string, signal unix.Signal) error {
	pids, err := e.cgroups.Pids(cgroup)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, signal); err != nil && err != unix.ESRCH {
			return fmt.Errorf("signal process %d: %w", pid, err)
		}
	}
	return nil
}

// UpdateContainer applies new limits.
func (e *Engine) UpdateContainer(ctx context.Context, key pod.Key, r *pod.Resources) error {
	is, err := e.find(ctx, key)
	if err != nil {
		return err
	}
	n, err := e.node(ctx)
	if err != nil {
		return err
	}
	limits, err := n.resources(r)
	if err != nil {
		return err
	}
	_, err = call(ctx, e.daemon, func(ctx context.Context) (client.ContainerUpdateResult, error) {
		return e.daemon.api.ContainerUpdate(ctx, is.id, client.ContainerUpdateOptions{Resources: &limits})
	})
	if err != nil {
		return err
	}
	is.files = n.filesWith(is.files, r)
	e.objects.change(key, func(o *object) { o.files = is.files })
	return e.writeFiles(is)
}

// RemoveContainer kills what runs and removes the container with its writable layer and volumes.
func (e *Engine) RemoveContainer(ctx context.Context, key pod.Key) error {
	if err := e.removeAll(ctx, key); err != nil {
		return err
	}
	return e.opts.Logs.Close(ctx, key)
}

// ReopenLog implements engine.LogReopener.
func (e *Engine) ReopenLog(ctx context.Context, key pod.Key) error {
	if e.heirlooms.has(key) { // its log is a link to Docker's own
		return nil
	}
	return e.opts.Logs.Reopen(ctx, key)
}
