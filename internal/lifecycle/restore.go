package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"

	"gantry/internal/checkpoint"
	"gantry/internal/engine"
	"gantry/internal/pod"
)

// source is the checkpoint that a container is made of.
type source struct {
	archive string        // path of one, or
	image   string        // id of an image that was made of one
	store   engine.Viewer // of the image
	of      *checkpoint.Container
	exact   bool // the request describes the process, and must be right
}

// imageOrCheckpoint finds the image that ref names. Where that is the path of a checkpoint's archive,
// or an image that was made of one, it finds the image of the container that was checkpointed.
func (m *Manager) imageOrCheckpoint(ctx context.Context, p *podEntry, ref string) (*pod.Image, *source, error) {
	name := p.now.Load().Engine
	if filepath.IsAbs(ref) {
		from, err := archiveSource(ctx, ref)
		if err != nil {
			return nil, nil, err
		}
		return m.checkpointed(ctx, p, from)
	}
	image, err := m.imageFor(ctx, name, ref)
	if err != nil || !checkpoint.IsImage(image.Annotations) {
		return image, nil, err
	}
	viewer, ok := m.opts.Images[name].(engine.Viewer)
	if !ok {
		return nil, nil, fmt.Errorf("image %s is a checkpoint, which the engine %s can't read: %w", ref, name, errdefs.ErrNotImplemented)
	}
	from := &source{image: image.ID, store: viewer}
	err = viewer.View(ctx, image.ID, func(dir string) error {
		from.of, err = checkpoint.Describes(dir)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("image %s: %w", ref, err)
	}
	return m.checkpointed(ctx, p, from)
}

func archiveSource(ctx context.Context, archive string) (*source, error) {
	of, err := checkpoint.Inspect(ctx, archive)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("checkpoint: %w: %w", errdefs.ErrNotFound, err)
	}
	return &source{archive: archive, of: of}, err
}

// checkpointed returns the image of the container that was checkpointed, found by its id or its name.
func (m *Manager) checkpointed(ctx context.Context, p *podEntry, from *source) (*pod.Image, *source, error) {
	sb := p.now.Load()
	if _, err := m.checkpointer(ctx, sb); err != nil {
		return nil, nil, err
	}
	for _, ref := range []string{from.of.ImageID, from.of.Image} {
		if ref == "" {
			continue
		}
		image, err := m.imageFor(ctx, sb.Engine, ref)
		if err == nil {
			return image, from, nil
		}
		if !errdefs.IsNotFound(err) {
			return nil, nil, err
		}
	}
	return nil, nil, fmt.Errorf("the checkpoint's image %s (%s) is not here, pull it first: %w", from.of.Image, from.of.ImageID, errdefs.ErrNotFound)
}

// unpackCheckpoint puts the checkpoint of a container that is made of one where its start finds it.
func (m *Manager) unpackCheckpoint(ctx context.Context, c *containerEntry) error {
	if c.source == nil {
		return nil
	}
	dir := m.checkpointDir(c.key)
	if c.source.archive != "" {
		return checkpoint.Unpack(ctx, c.source.archive, dir)
	}
	return c.source.store.View(ctx, c.source.image, func(from string) error { return checkpoint.Copy(ctx, from, dir) })
}

func (m *Manager) removeCheckpoint(_ context.Context, c *containerEntry) error {
	return os.RemoveAll(m.checkpointDir(c.key))
}

// hasRestored gives back what a container that was started was made of.
func (m *Manager) hasRestored(c *containerEntry) {
	if err := os.RemoveAll(m.checkpointDir(c.key)); err != nil {
		m.log.Warn("a checkpoint that was restored was not removed", "container", c.key, "error", err)
	}
}

// RestorePod makes a pod of the checkpoint in dir, with exactly the containers that it has, created and
// not started. A repeat after a lost answer takes its result. What fails, or is not done when ctx
// ends, is undone before the call returns.
func (m *Manager) RestorePod(ctx context.Context, dir string, spec *pod.SandboxSpec, containers []*pod.ContainerSpec) (*pod.RestoredPod, error) {
	name, err := m.engineOf(spec.Handler)
	if err != nil {
		return nil, err
	}
	sb := &pod.Sandbox{Spec: *spec, Engine: name, Restoring: true}
	if _, err = m.checkpointer(ctx, sb); err != nil {
		return nil, err
	}
	sources, err := podSources(ctx, dir, containers)
	if err != nil {
		return nil, err
	}
	md := spec.Metadata
	var restored *pod.RestoredPod
	err = m.within(ctx, func(ctx context.Context) error {
		unlock, lockErr := m.restores.Lock(ctx, fmt.Sprintf("%q %q %q %d", md.Namespace, md.Name, md.UID, md.Attempt))
		if lockErr != nil {
			return lockErr
		}
		defer unlock()
		var restoreErr error
		restored, restoreErr = m.restorePod(ctx, sb, containers, sources)
		return restoreErr
	})
	return restored, err
}

// podSources finds the archive of every container, by name.
func podSources(ctx context.Context, dir string, containers []*pod.ContainerSpec) (map[string]*source, error) {
	about, err := checkpoint.DescribesPod(dir)
	if err != nil {
		return nil, fmt.Errorf("checkpoint_path: %w", err)
	}
	sources := make(map[string]*source)
	for _, c := range containers {
		file, ok := about.Archives[c.Name]
		if !ok || sources[c.Name] != nil {
			return nil, fmt.Errorf("container_configs: %s is not in the checkpoint, or is there twice; it has %v: %w",
				c.Name, slices.Sorted(maps.Keys(about.Archives)), errdefs.ErrInvalidArgument)
		}
		from, err := archiveSource(ctx, filepath.Join(dir, file))
		if err != nil {
			return nil, err
		}
		from.exact = true
		sources[c.Name] = from
	}
	if len(sources) != len(about.Archives) {
		return nil, fmt.Errorf("container_configs: the checkpoint has %v: %w", slices.Sorted(maps.Keys(about.Archives)), errdefs.ErrInvalidArgument)
	}
	return sources, nil
}

func (m *Manager) restorePod(ctx context.Context, sb *pod.Sandbox, containers []*pod.ContainerSpec, sources map[string]*source) (*pod.RestoredPod, error) {
	if p := m.readyPod(&sb.Spec); p != nil {
		return m.restoredPod(p, containers)
	}
	id, err := m.runPod(ctx, sb)
	if err != nil {
		return nil, err
	}
	p, err := m.index.pod(id)
	if err != nil {
		return nil, err
	}
	made, err := m.restoreContainers(ctx, p, containers, sources)
	if err == nil {
		err = m.reached(OpRestorePod, pointRecord)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.times.Undo)
		defer cancel()
		p.stopping()
		if undone := m.locked(undo, p, func(ctx context.Context) error { return m.removePod(ctx, p) }); undone != nil {
			m.log.Warn("a pod that could not be restored is still being removed", "pod", p.key, "error", undone)
		}
		return nil, fmt.Errorf("restore pod: %w", err)
	}
	return made, nil
}

func (m *Manager) restoreContainers(ctx context.Context, p *podEntry, containers []*pod.ContainerSpec, sources map[string]*source) (*pod.RestoredPod, error) {
	ctx, done := p.while(ctx)
	defer done()
	made := &pod.RestoredPod{ID: p.id(), Containers: make(map[string]string)}
	for _, spec := range containers {
		image, from, err := m.checkpointed(ctx, p, sources[spec.Name])
		if err == nil {
			err = m.sameImage(ctx, p, spec, image)
		}
		if err == nil {
			made.Containers[spec.Name], err = m.createFrom(ctx, p, spec, image, from)
		}
		if err == nil {
			err = m.reached(OpRestorePod, pointContainer)
		}
		if err != nil {
			return nil, causeOf(ctx, fmt.Errorf("container %s: %w", spec.Name, err))
		}
	}
	return made, p.change(func(sb *pod.Sandbox) (*pod.Sandbox, error) {
		n := *sb
		n.Restoring = false
		return &n, nil
	})
}

// sameImage refuses a request that names another image than the checkpoint's.
func (m *Manager) sameImage(ctx context.Context, p *podEntry, spec *pod.ContainerSpec, image *pod.Image) error {
	asked, err := m.imageFor(ctx, p.now.Load().Engine, spec.ImageID)
	if err != nil {
		return err
	}
	if asked.ID != image.ID {
		return fmt.Errorf("image %s is %s, that of the checkpoint is %s: %w", spec.ImageID, asked.ID, image.ID, errdefs.ErrInvalidArgument)
	}
	return nil
}

// restoredPod takes the result of a restore whose answer was lost; any other pod of that name is in the way.
func (m *Manager) restoredPod(p *podEntry, containers []*pod.ContainerSpec) (*pod.RestoredPod, error) {
	made := &pod.RestoredPod{ID: p.id(), Containers: make(map[string]string)}
	for _, c := range m.index.containersOf(p.key) {
		if is := c.now.Load(); is.Restored && is.State == pod.ContainerCreated {
			made.Containers[is.Spec.Name] = is.ID
		}
	}
	for _, spec := range containers {
		if made.Containers[spec.Name] == "" {
			return nil, fmt.Errorf("pod %s has this name and attempt: %w", p.id(), errdefs.ErrAlreadyExists)
		}
	}
	if len(made.Containers) != len(containers) {
		return nil, fmt.Errorf("pod %s has this name and attempt: %w", p.id(), errdefs.ErrAlreadyExists)
	}
	return made, nil
}

// unrestoreNow removes a pod that a crash left half restored.
func (m *Manager) unrestoreNow(p *podEntry) <-chan struct{} {
	p.stopping()
	return m.now("remove half-restored pod "+string(p.key), func(ctx context.Context) error {
		return m.locked(ctx, p, func(ctx context.Context) error { return m.removePod(ctx, p) })
	})
}
