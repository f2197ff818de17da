package docker

import (
	"context"
	"errors"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"gantry/internal/pod"
)

// Labels that dockershim and cri-dockerd give containers, beside those of names.go. The kubelet sets
// those below io.kubernetes.pod and io.kubernetes.container on what it asks for.
const (
	labelPodName      = "io.kubernetes.pod.name"
	labelPodNamespace = "io.kubernetes.pod.namespace"
	labelPodUID       = "io.kubernetes.pod.uid"
	labelContainer    = "io.kubernetes.container.name"
)

// heirlooms are the containers of an earlier runtime that were taken over. Their key is their id.
type heirlooms struct {
	mu  sync.Mutex
	all map[pod.Key]bool // guarded by mu
}

func (h *heirlooms) has(key pod.Key) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all[key]
}

// keyOf is the key of one of Docker's containers that is ours, "" of one that is not.
func (e *Engine) keyOf(id string, labels map[string]string) pod.Key {
	if key := pod.Key(labels[LabelKey]); key != "" {
		return key
	}
	if key := pod.Key(id); e.heirlooms.has(key) {
		return key
	}
	return ""
}

// TakeOver implements engine.Heir.
func (e *Engine) TakeOver(keys ...pod.Key) {
	e.heirlooms.mu.Lock()
	defer e.heirlooms.mu.Unlock()
	for _, key := range keys {
		e.heirlooms.all[key] = true
	}
}

// letGo ends what TakeOver began, for what was removed.
func (e *Engine) letGo(key pod.Key) {
	e.heirlooms.mu.Lock()
	defer e.heirlooms.mu.Unlock()
	delete(e.heirlooms.all, key)
}

// Foreign implements engine.Heir: what carries dockershim's labels and no key of ours.
func (e *Engine) Foreign(ctx context.Context) ([]*pod.Sandbox, []*pod.Container, error) {
	if _, err := e.node(ctx); err != nil { // it tells where cgroups are
		return nil, nil, err
	}
	summaries, err := e.list(ctx, labelType)
	if err != nil {
		return nil, nil, err
	}
	var (
		pods       []*pod.Sandbox
		containers []*pod.Container
		known      = map[pod.Key]bool{}
		errs       []error
	)
	for i := range summaries {
		if e.keyOf(summaries[i].ID, summaries[i].Labels) != "" {
			continue
		}
		c, err := e.inspect(ctx, summaries[i].ID)
		switch {
		case errdefs.IsNotFound(err): // removed meanwhile
		case err != nil:
			errs = append(errs, err)
		case c.Config.Labels[labelType] == typeSandbox:
			sb := foreignSandbox(c)
			pods, known[sb.Spec.Key] = append(pods, sb), true
		case c.Config.Labels[labelType] == typeContainer:
			containers = append(containers, e.foreignContainer(c))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, nil, err
	}
	for _, c := range containers {
		if key := c.Spec.Sandbox; key != "" && !known[key] && !e.heirlooms.has(key) { // the pause container was removed
			pods, known[key] = append(pods, sandboxWithoutPause(c)), true
		}
	}
	return pods, containers, nil
}

// foreignSandbox is a sandbox out of its pause container, ready as long as that runs.
func foreignSandbox(c *container.InspectResponse) *pod.Sandbox {
	sb := sandboxOf(c.ID, c.Config.Labels)
	if c.State.Running {
		sb.State = pod.SandboxReady
	}
	sb.CreatedAt = timeOf(c.Created)
	sb.Spec.Metadata.Attempt = attemptOf(c.Name)
	sb.Spec.Hostname = c.Config.Hostname
	if c.HostConfig.NetworkMode.IsHost() {
		sb.Spec.Namespaces.Network, sb.Network = pod.NamespaceNode, nil
	}
	return sb
}

func sandboxOf(id string, labels map[string]string) *pod.Sandbox {
	sb := &pod.Sandbox{ID: id, State: pod.SandboxNotReady}
	// Plugins are called once more for what they gave it. Its namespace is left out: the pid that its
	// path would have may be another's by then.
	sb.Network = &pod.Network{}
	sb.Spec.Key = pod.Key(id)
	sb.Spec.Metadata = pod.Metadata{Name: labels[labelPodName], Namespace: labels[labelPodNamespace], UID: labels[labelPodUID]}
	sb.Spec.Labels, sb.Spec.Annotations = splitLabels(labels)
	sb.Spec.Namespaces = pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceContainer, IPC: pod.NamespacePod}
	return sb
}

// sandboxWithoutPause stands for the pause container that a container names and nobody has.
func sandboxWithoutPause(c *pod.Container) *pod.Sandbox {
	sb := sandboxOf(c.SandboxID, c.Spec.Labels)
	sb.Spec.Labels, sb.Spec.Annotations = nil, nil // the pod's are not known
	sb.CreatedAt = c.CreatedAt
	return sb
}

func (e *Engine) foreignContainer(c *container.InspectResponse) *pod.Container {
	labels := c.Config.Labels
	out := &pod.Container{
		ID: c.ID, SandboxID: labels[labelSandboxID], ImageRef: c.Image, State: stateOf(c.State), CgroupPath: e.cgroupOf(c),
		CreatedAt: timeOf(c.Created), StartedAt: timeOf(c.State.StartedAt), StopSignal: c.Config.StopSignal,
	}
	out.Spec = pod.ContainerSpec{
		Key: pod.Key(c.ID), Sandbox: pod.Key(out.SandboxID), Name: labels[labelContainer], Attempt: attemptOf(c.Name),
		ImageID: c.Image, ImageName: c.Config.Image, LogPath: labels[labelLogPath], TTY: c.Config.Tty,
		Stdin: c.Config.OpenStdin, StdinOnce: c.Config.StdinOnce,
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pidMode(c.HostConfig.PidMode), IPC: pod.NamespacePod},
	}
	out.Spec.Labels, out.Spec.Annotations = splitLabels(labels)
	switch out.State {
	case pod.ContainerRunning:
		out.Pid = c.State.Pid
	case pod.ContainerExited:
		out.State = pod.ContainerRunning
		if ended, err := out.Exited(*exitOf(c.State)); err == nil {
			return ended
		}
	}
	return out
}

func pidMode(mode container.PidMode) pod.NamespaceMode {
	switch {
	case mode.IsHost():
		return pod.NamespaceNode
	case mode.IsContainer():
		return pod.NamespacePod
	}
	return pod.NamespaceContainer
}

// splitLabels gives back the labels and annotations that dockershim put into one map, without its own.
func splitLabels(all map[string]string) (labels, annotations map[string]string) {
	labels, annotations = maps.Clone(all), map[string]string{}
	for _, own := range []string{labelType, labelSandboxID, labelLogPath} {
		delete(labels, own)
	}
	for name, value := range all {
		if bare, ok := strings.CutPrefix(name, annotationPrefix); ok {
			delete(labels, name)
			annotations[bare] = value
		}
	}
	return labels, annotations
}

// attemptOf reads the attempt out of a name of dockershim's, behind which a random part may stand.
func attemptOf(name string) uint32 {
	parts := strings.Split(name, "_")
	if len(parts) < 6 {
		return 0
	}
	n, err := strconv.ParseUint(parts[5], 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// timeOf reads one of Docker's times, zero where it has none.
func timeOf(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() <= 1 {
		return time.Time{}
	}
	return t
}
