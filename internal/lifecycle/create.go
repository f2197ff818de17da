package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// CreateContainer makes a container in a sandbox that is ready and returns its id. A repeat, with the
// same name, attempt, image and command, joins the attempt under way or takes its result, as long as
// nobody has started it.
func (m *Manager) CreateContainer(ctx context.Context, podID string, spec *pod.ContainerSpec) (string, error) {
	p, err := m.index.pod(podID)
	if err != nil {
		return "", err
	}
	if err := mustBeReady(p); err != nil {
		return "", err
	}
	key := fmt.Sprintf("create %s %q %s", p.key, spec.ImageID, request(spec))
	return m.attempts.do(ctx, key, func(ctx context.Context) (string, error) {
		ctx, done := p.while(ctx)
		defer done()
		id, err := m.createContainer(ctx, p, spec)
		return id, causeOf(ctx, err)
	})
}

func mustBeReady(p *podEntry) error {
	if s := p.now.Load().State; s != pod.SandboxReady {
		return fmt.Errorf("pod %s is %s: %w", p.key.Short(), s, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// request tells repeats of a request from other requests. Paths and environment are not compared: the
// kubelet chooses new ones for every attempt.
func request(s *pod.ContainerSpec) string {
	return fmt.Sprintf("%q %d %q %q %q %q %t %t", s.Name, s.Attempt, s.Command, s.Args, s.WorkingDir, s.Namespaces.TargetID, s.Stdin, s.TTY)
}

// createdContainer finds what an earlier attempt of the same request made.
func (m *Manager) createdContainer(p *podEntry, spec *pod.ContainerSpec, imageID string) *containerEntry {
	for _, c := range m.index.containersOf(p.key) {
		is := c.now.Load()
		if is.State == pod.ContainerCreated && is.ImageRef == imageID && request(&is.Spec) == request(spec) {
			return c
		}
	}
	return nil
}

func (m *Manager) createContainer(ctx context.Context, p *podEntry, spec *pod.ContainerSpec) (string, error) {
	image, from, err := m.imageOrCheckpoint(ctx, p, spec.ImageID)
	if err != nil {
		return "", err
	}
	return m.createFrom(ctx, p, spec, image, from)
}

// createFrom creates a container of an image, or of a checkpoint whose image it is.
func (m *Manager) createFrom(ctx context.Context, p *podEntry, spec *pod.ContainerSpec, image *pod.Image, from *source) (string, error) {
	if c := m.createdContainer(p, spec, image.ID); c != nil {
		return c.id(), nil
	}
	unlock, err := m.locks.Lock(ctx, p.key)
	if err != nil {
		return "", err
	}
	defer unlock()
	if err = mustBeReady(p); err != nil {
		return "", err
	}
	c, err := m.newContainer(p, spec, image)
	if err != nil {
		return "", err
	}
	if from != nil {
		c.source, c.create.Restore = from, &engine.Restore{Dir: m.checkpointDir(c.key), Exact: from.exact}
		c.note(func(is pod.Container) *pod.Container { is.Restored = true; return &is })
	}
	m.index.addContainer(c)
	if err := m.makeContainer(ctx, c); err != nil {
		if undone := m.undoContainer(context.WithoutCancel(ctx), OpUndoContainer, c); undone != nil {
			m.log.Warn("a container that failed could not be undone, trying again", "container", c.key, "error", undone)
			m.undoContainerLater(OpUndoContainer, c)
		}
		return "", err
	}
	m.tellContainer(ctx, c, pod.MomentCreated)
	c.create, c.source = nil, nil
	return c.id(), nil
}

// newContainer completes the request: key, log path, image and the process whose namespace is joined.
func (m *Manager) newContainer(p *podEntry, spec *pod.ContainerSpec, image *pod.Image) (*containerEntry, error) {
	sb := p.now.Load()
	s := *spec
	s.Key, s.Sandbox = pod.NewKey(), p.key
	s.ImageID = image.ID
	if s.ImageName == "" {
		s.ImageName = spec.ImageID
	}
	s.LogPath = logPath(sb.Spec.LogDirectory, s.LogName)
	bounds, err := logBounds(m.opts.LogBounds, sb.Spec.Annotations)
	if err != nil {
		return nil, err
	}
	s.LogBounds = bounds
	target, err := m.targetPid(p, &s.Namespaces)
	if err != nil {
		return nil, err
	}
	if s.LogPath != "" {
		if err := makeLogDir(sb.Spec.LogDirectory, s.LogName); err != nil {
			return nil, fmt.Errorf("make log directory: %w", err)
		}
	}
	c := m.newContainerEntry(p, &pod.Container{
		Spec: s, SandboxID: sb.ID, ImageRef: image.ID, State: pod.ContainerCreating,
		CreatedAt: time.Now(), Step: pointIntent,
	})
	c.create = &engine.Create{Spec: &c.now.Load().Spec, Sandbox: sb, Files: p.files, Image: image, TargetPid: target}
	return c, nil
}

// logPath joins what the client gave so that no name leads out of the sandbox's log directory. An
// empty part means that nothing is to be logged (CRI ContainerConfig.log_path).
func logPath(dir, name string) string {
	if dir == "" || name == "" {
		return ""
	}
	return filepath.Join(dir, filepath.Clean("/"+name))
}

// makeLogDir makes the directory of a log below the pod's own. A link that leads out of that, which a
// container may have put there, is an error.
func makeLogDir(dir, name string) error {
	if err := makeAll(dir); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	below, err := filepath.Rel("/", filepath.Dir(filepath.Clean("/"+name)))
	if err != nil {
		return err
	}
	return root.MkdirAll(below, 0o755)
}

// targetPid is the process whose PID namespace is joined; 0 when none is.
func (m *Manager) targetPid(p *podEntry, n *pod.Namespaces) (int, error) {
	if n.PID != pod.NamespaceTarget {
		return 0, nil
	}
	target, err := m.index.container(n.TargetID)
	if err != nil {
		return 0, fmt.Errorf("target of the PID namespace: %w", err)
	}
	t := target.now.Load()
	if target.pod != p {
		return 0, fmt.Errorf("target container %s is in another pod: %w", n.TargetID, errdefs.ErrInvalidArgument)
	}
	if t.State != pod.ContainerRunning || t.Pid == 0 {
		return 0, fmt.Errorf("target container %s is %s: %w", n.TargetID, t.State, errdefs.ErrFailedPrecondition)
	}
	return t.Pid, nil
}

func (m *Manager) makeContainer(ctx context.Context, c *containerEntry) error {
	if err := c.change(func(is *pod.Container) (*pod.Container, error) { return is, nil }); err != nil {
		return err
	}
	if err := m.reached(OpCreateContainer, pointIntent); err != nil {
		return err
	}
	return forward(ctx, m, OpCreateContainer, m.containerSteps(), c)
}

func (m *Manager) engineCreate(ctx context.Context, c *containerEntry) error {
	created, err := c.pod.engine.CreateContainer(ctx, c.create)
	if err != nil {
		return err
	}
	c.note(func(is pod.Container) *pod.Container {
		is.ID, is.Pid, is.CgroupPath = created.ID, created.Pid, created.CgroupPath
		is.StopSignal = cmp.Or(is.Spec.StopSignal, created.StopSignal, c.create.Image.Config.StopSignal, "SIGTERM")
		is.User = created.User
		is.BlockIOClass, is.RDTClass = created.BlockIOClass, created.RDTClass
		return &is
	})
	return nil
}

func (m *Manager) engineRemove(ctx context.Context, c *containerEntry) error {
	unlock, err := m.locks.Lock(ctx, c.key)
	if err != nil {
		return err
	}
	defer unlock()
	return c.pod.engine.RemoveContainer(ctx, c.key)
}

// publishContainer makes the container one that lists show.
func (m *Manager) publishContainer(_ context.Context, c *containerEntry) error {
	err := c.change(func(is *pod.Container) (*pod.Container, error) { return is.To(pod.ContainerCreated) })
	if err == nil {
		m.index.addContainer(c)
	}
	return err
}

// undoContainer walks all the way back and deletes the record only when every undo succeeded. The
// pod's lock is held.
func (m *Manager) undoContainer(ctx context.Context, op Op, c *containerEntry) error {
	if err := backward(ctx, m, op, m.containerSteps(), c); err != nil {
		return err
	}
	if op == OpUndoContainer {
		if err := removeEmptyLog(c); err != nil { // it must not hold up the rest
			m.log.Warn("the log of a container that never was stays", "container", c.key, "error", err)
		}
	}
	if err := c.forget(func() error { return m.journal.DeleteContainer(c.key) }); err != nil {
		return err
	}
	c.hasExited()
	m.index.removeContainer(c)
	m.unmeter(c.now.Load().CgroupPath)
	if op == OpRemoveContainer {
		return m.reached(op, pointForget)
	}
	return nil
}

// removeEmptyLog removes the log file of a container that never was. The kubelet counts a pod's restarts by such files where
// it finds no container: the next attempt would be told as a restart.
func removeEmptyLog(c *containerEntry) error {
	sb, spec := c.pod.now.Load(), &c.now.Load().Spec
	if spec.LogPath == "" {
		return nil
	}
	root, err := os.OpenRoot(sb.Spec.LogDirectory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	name := filepath.Clean("/" + spec.LogName)[1:]
	info, err := root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() || info.Size() > 0 { // what is not there, or not ours, stays as it is
		return nil
	}
	return root.Remove(name)
}

// undoContainerLater repeats undoContainer until it succeeds.
func (m *Manager) undoContainerLater(op Op, c *containerEntry) {
	m.retry("remove container "+string(c.key), func(ctx context.Context) error {
		return m.locked(ctx, c.pod, func(ctx context.Context) error { return m.undoContainer(ctx, op, c) })
	})
}
