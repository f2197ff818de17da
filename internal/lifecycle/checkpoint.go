package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/checkpoint"
	"gantry/internal/engine"
	"gantry/internal/pod"
)

// checkpointLimit is how long a checkpoint may take whose caller set no limit.
const checkpointLimit = 2 * time.Minute

// CheckpointContainer writes a running container as an archive to location, whose directory exists; the
// container goes on. Until it is whole the archive has another name, and what fails leaves nothing.
// When ctx ends, the container runs again and nothing is left when the call returns.
func (m *Manager) CheckpointContainer(ctx context.Context, id, location string) error {
	c, err := m.index.container(id)
	if err != nil {
		return err
	}
	if st, err := os.Lstat(location); err == nil && !st.Mode().IsRegular() {
		return fmt.Errorf("location %s is no regular file: %w", location, errdefs.ErrInvalidArgument)
	}
	if st, err := os.Stat(filepath.Dir(location)); err != nil || !st.IsDir() {
		return fmt.Errorf("location %s: its directory is not there: %w", location, errdefs.ErrInvalidArgument)
	}
	k := &capturing{
		p: c.pod, containers: []*containerEntry{c}, scratch: location + "." + pod.NewKey().Short() + ".partial",
		final: map[pod.Key]string{c.key: location},
	}
	return m.checkpoint(ctx, k)
}

// CheckpointPod writes running containers of a pod, of one moment, into the directory, which is empty
// and the caller's: no container runs on before all are captured, and all do when the call returns.
func (m *Manager) CheckpointPod(ctx context.Context, podID, dir string, ids []string) error {
	p, err := m.index.pod(podID)
	if err != nil {
		return err
	}
	k := &capturing{p: p, scratch: filepath.Join(dir, ".partial"), dir: dir, final: map[pod.Key]string{}}
	names := make(map[string]bool)
	for _, id := range ids {
		c, err := m.index.container(id)
		if err != nil {
			return fmt.Errorf("container_ids: %w", err)
		}
		name := c.now.Load().Spec.Name
		switch {
		case c.pod != p:
			return fmt.Errorf("container_ids: container %s is in another pod: %w", id, errdefs.ErrInvalidArgument)
		case slices.Contains(k.containers, c):
			return fmt.Errorf("container_ids: container %s is there twice: %w", id, errdefs.ErrInvalidArgument)
		case names[name]:
			return fmt.Errorf("container_ids: two containers have the name %s: %w", name, errdefs.ErrFailedPrecondition)
		}
		names[name] = true
		k.containers = append(k.containers, c)
		k.final[c.key] = filepath.Join(dir, checkpoint.ArchiveName(name))
	}
	if err := mustBeEmpty(dir); err != nil {
		return err
	}
	return m.checkpoint(ctx, k)
}

func mustBeEmpty(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("output_path: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	defer func() { _ = d.Close() }()
	switch names, err := d.Readdirnames(1); {
	case len(names) > 0:
		return fmt.Errorf("output_path %s is not empty: %w", dir, errdefs.ErrFailedPrecondition)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("output_path: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	return nil
}

// capturing is a checkpoint under way.
type capturing struct {
	p          *podEntry
	containers []*containerEntry
	scratch    string             // directory of what is not whole
	dir        string             // of a pod's checkpoint
	final      map[pod.Key]string // the archives, when they are whole
	at         time.Time
}

// partial are the paths that are to be removed when the checkpoint fails. The one archive of a container
// is whole when it has its name; of a pod's checkpoint each file is part.
func (k *capturing) partial() []string {
	all := []string{k.scratch}
	if k.dir == "" {
		return all
	}
	for _, c := range k.containers {
		all = append(all, k.final[c.key])
	}
	return append(all, filepath.Join(k.dir, checkpoint.PodFile))
}

// checkpoint runs behind the call, so that a server which is closed waits for it; it ends with the
// call all the same.
func (m *Manager) checkpoint(ctx context.Context, k *capturing) error {
	ctx, cancel := context.WithTimeout(ctx, checkpointLimit)
	defer cancel()
	return m.within(ctx, func(ctx context.Context) error {
		ctx, done := k.p.while(ctx)
		defer done()
		return causeOf(ctx, m.locked(ctx, k.p, func(ctx context.Context) error { return m.takeCheckpoint(ctx, k) }))
	})
}

// within does what neither joins others nor outlives its caller. It ends early when the server does.
func (m *Manager) within(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(m.ctx, func() { //nolint:contextcheck // ctx ends with m.ctx as well
		cancel(fmt.Errorf("the server is stopping: %w", errdefs.ErrUnavailable))
	})
	defer stop()
	result := make(chan error, 1)
	m.work.Go(func() {
		defer close(result)
		result <- do(ctx)
	})
	err, ok := <-result
	if !ok {
		return fmt.Errorf("the attempt ended without a result: %w", errdefs.ErrInternal)
	}
	return err
}

func (m *Manager) takeCheckpoint(ctx context.Context, k *capturing) error {
	if err := mustBeReady(k.p); err != nil {
		return err
	}
	for _, c := range k.containers {
		if s := c.now.Load().State; s != pod.ContainerRunning {
			return fmt.Errorf("container %s is %s, not running: %w", c.key.Short(), s, errdefs.ErrFailedPrecondition)
		}
	}
	eng, err := m.checkpointer(ctx, k.p.now.Load())
	if err != nil {
		return err
	}
	err = k.p.change(func(sb *pod.Sandbox) (*pod.Sandbox, error) {
		n := *sb
		n.Capture = &pod.Capture{Partial: k.partial()}
		for _, c := range k.containers {
			n.Capture.Containers = append(n.Capture.Containers, c.key)
		}
		return &n, nil
	})
	if err != nil {
		return err
	}
	if err = m.writeCheckpoint(ctx, eng, k); err == nil {
		return nil
	}
	if ended := m.endCapture(context.WithoutCancel(ctx), k.p); ended != nil {
		m.log.Warn("a checkpoint that failed could not be ended, trying again", "pod", k.p.key, "error", ended)
		m.retry(endingOf(k.p), m.captureEnder(k.p))
	}
	return fmt.Errorf("checkpoint: %w", err)
}

// checkpointer is the engine's power, if it has it for the pod.
func (m *Manager) checkpointer(ctx context.Context, sb *pod.Sandbox) (capturer, error) {
	eng, ok := m.opts.Engines[sb.Engine].(capturer)
	if !ok {
		return nil, fmt.Errorf("engine %s has no checkpoints: %w", sb.Engine, errdefs.ErrNotImplemented)
	}
	return eng, eng.CanCheckpoint(ctx, sb.Spec.Handler)
}

type capturer interface {
	engine.Pauser
	engine.Checkpointer
}

// writeCheckpoint does all that is to be undone when it fails.
func (m *Manager) writeCheckpoint(ctx context.Context, eng capturer, k *capturing) error {
	if err := m.reached(OpCheckpoint, pointIntent); err != nil {
		return err
	}
	if err := os.Mkdir(k.scratch, 0o700); err != nil {
		return err
	}
	for _, c := range k.containers {
		if err := eng.Pause(ctx, c.key); err != nil {
			return err
		}
	}
	if err := m.reached(OpCheckpoint, pointPaused); err != nil {
		return err
	}
	k.at = time.Now()
	for _, c := range k.containers {
		if err := m.capture(ctx, eng, c, k); err != nil {
			return err
		}
	}
	if err := m.reached(OpCheckpoint, pointCaptured); err != nil {
		return err
	}
	if err := m.resume(ctx, eng, k.containers); err != nil {
		return err
	}
	if err := m.reached(OpCheckpoint, pointResumed); err != nil {
		return err
	}
	if err := k.publish(ctx); err != nil {
		return err
	}
	if err := m.reached(OpCheckpoint, pointPublished); err != nil {
		return err
	}
	if err := m.forgetCapture(k.p); err != nil {
		return err
	}
	return m.reached(OpCheckpoint, pointRecord)
}

// forgetCapture records that no checkpoint is under way, which is true whatever the disk says.
func (m *Manager) forgetCapture(p *podEntry) error {
	return p.mark(m.log, func(sb *pod.Sandbox) (*pod.Sandbox, error) {
		n := *sb
		n.Capture = nil
		return &n, nil
	})
}

// capture writes one container's checkpoint into a directory of its own.
func (m *Manager) capture(ctx context.Context, eng capturer, c *containerEntry, k *capturing) error {
	dir := filepath.Join(k.scratch, string(c.key))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := eng.Checkpoint(ctx, c.key, dir); err != nil {
		return err
	}
	is := c.now.Load()
	if err := copyLog(ctx, is.Spec.LogPath, filepath.Join(dir, checkpoint.LogFile)); err != nil {
		return err
	}
	return checkpoint.Describe(dir, &checkpoint.Container{
		ID: is.ID, Name: is.Spec.Name, Image: is.Spec.ImageName, ImageID: is.ImageRef, Runtime: c.pod.now.Load().Spec.Handler,
		CreatedAt: is.CreatedAt, At: k.at, StartedAt: is.StartedAt, Pid: is.Pid, Status: is,
	})
}

// copyLog copies a log that is a regular file; a container without one has none.
func copyLog(ctx context.Context, path, to string) error {
	if path == "" {
		return nil
	}
	from, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil // the kubelet's to remove
	}
	defer func() { _ = from.Close() }()
	st, err := from.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return err
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close(), ctx.Err())
}

// resume lets containers go on, also when one of them fails, and whatever becomes of ctx.
func (m *Manager) resume(ctx context.Context, eng capturer, all []*containerEntry) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.times.Undo)
	defer cancel()
	var errs []error
	for _, c := range all {
		errs = append(errs, eng.Resume(ctx, c.key))
	}
	return errors.Join(errs...)
}

// publish packs what was captured and gives it the names that the caller knows. What says that a pod's
// checkpoint is whole comes last.
func (k *capturing) publish(ctx context.Context) error {
	archives := make(map[string]string)
	for _, c := range k.containers {
		dir, final := filepath.Join(k.scratch, string(c.key)), k.final[c.key]
		if err := checkpoint.Pack(ctx, dir, dir+".tar"); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil { // the space may be short
			return err
		}
		archives[c.now.Load().Spec.Name] = filepath.Base(final)
	}
	for _, c := range k.containers {
		if err := os.Rename(filepath.Join(k.scratch, string(c.key))+".tar", k.final[c.key]); err != nil {
			return err
		}
	}
	if k.dir != "" {
		sb := k.p.now.Load()
		md := sb.Spec.Metadata
		about := &checkpoint.Pod{Archives: archives, Name: md.Name, Namespace: md.Namespace, UID: md.UID, ID: sb.ID}
		if err := checkpoint.DescribePod(k.scratch, about); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(k.scratch, checkpoint.PodFile), filepath.Join(k.dir, checkpoint.PodFile)); err != nil {
			return err
		}
	}
	return os.RemoveAll(k.scratch)
}

// endCapture undoes a checkpoint that did not come to its end: all containers run, nothing of it is
// left, and the record says so. The pod's lock is held.
func (m *Manager) endCapture(ctx context.Context, p *podEntry) error {
	was := p.now.Load().Capture
	if was == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, m.times.Undo)
	defer cancel()
	var errs []error
	if eng, ok := p.engine.(engine.Pauser); ok {
		for _, key := range was.Containers {
			errs = append(errs, eng.Resume(ctx, key))
		}
	}
	for _, path := range was.Partial {
		errs = append(errs, os.RemoveAll(path))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return m.forgetCapture(p)
}

// finishCapture ends what a crash interrupted.
func (m *Manager) finishCapture(p *podEntry) <-chan struct{} {
	m.log.Warn("a checkpoint was under way when the server ended; its containers go on", "pod", p.key)
	return m.now(endingOf(p), m.captureEnder(p))
}

func endingOf(p *podEntry) string { return "end the checkpoint of pod " + string(p.key) }

func (m *Manager) captureEnder(p *podEntry) func(context.Context) error {
	return func(ctx context.Context) error {
		unlock, err := m.locks.Lock(ctx, p.key)
		if err != nil {
			return err
		}
		defer unlock()
		return m.endCapture(ctx, p)
	}
}

// checkpointDir is where the checkpoint is unpacked that a container is to be restored from.
func (m *Manager) checkpointDir(key pod.Key) string {
	return filepath.Join(m.opts.CheckpointDir, string(key))
}

// collectCheckpoints removes what was unpacked for no container that is known.
func (m *Manager) collectCheckpoints() {
	entries, err := os.ReadDir(m.opts.CheckpointDir)
	if err != nil {
		m.log.Warn("the directory of checkpoints was not read", "error", err)
	}
	for _, e := range entries {
		if key := pod.Key(e.Name()); m.index.containerByKey(key) != nil {
			continue
		}
		if err := os.RemoveAll(filepath.Join(m.opts.CheckpointDir, e.Name())); err != nil {
			m.log.Warn("a checkpoint that no record names was not removed", "error", err)
		}
	}
}
