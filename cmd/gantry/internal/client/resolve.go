package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var errNotFound = errors.New("not found")

// Labels that the kubelet sets on pods and containers, and `gantry run` too.
const (
	LabelPodName      = "io.kubernetes.pod.name"
	LabelPodNamespace = "io.kubernetes.pod.namespace"
	LabelPodUID       = "io.kubernetes.pod.uid"
	LabelContainer    = "io.kubernetes.container.name"
)

// candidate is something that a user may mean.
type candidate[T any] struct {
	item  T
	id    string
	names []string // every name it may be called by
	live  bool     // preferred where a name fits several
	shown string   // for the error that lists what was meant
}

// match finds what arg means: an id, else a name, else an unambiguous beginning of an id.
func match[T any](kind, arg string, all []candidate[T]) (T, error) {
	var zero T
	ranks := []func(candidate[T]) bool{
		func(c candidate[T]) bool { return c.id == arg },
		func(c candidate[T]) bool { return slices.Contains(c.names, arg) && c.live },
		func(c candidate[T]) bool { return slices.Contains(c.names, arg) },
		func(c candidate[T]) bool { return arg != "" && strings.HasPrefix(c.id, arg) },
	}
	for _, fits := range ranks {
		var found []candidate[T]
		for _, c := range all {
			if fits(c) {
				found = append(found, c)
			}
		}
		switch len(found) {
		case 0:
			continue
		case 1:
			return found[0].item, nil
		}
		var shown []string
		for _, c := range found {
			shown = append(shown, fmt.Sprintf("%s (%s)", Short(c.id), c.shown))
		}
		return zero, fmt.Errorf("%s %q is ambiguous: %s", kind, arg, strings.Join(shown, ", "))
	}
	return zero, fmt.Errorf("%s %q: %w", kind, arg, errNotFound)
}

// Pod finds a pod by id, beginning of an id, name or namespace/name. Of several with one name the
// ready one is meant.
func (c *Client) Pod(ctx context.Context, arg string) (*v1.PodSandbox, error) {
	pods, err := c.Runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	return match("pod", arg, podCandidates(pods))
}

// Container finds a container by id, beginning of an id, name, pod/name or namespace/pod/name. Of
// several with one name the running one is meant.
func (c *Client) Container(ctx context.Context, arg string) (*v1.Container, error) {
	containers, pods, err := c.Everything(ctx)
	if err != nil {
		return nil, err
	}
	return match("container", arg, containerCandidates(containers, pods))
}

// Everything lists all containers and, by id, all pods.
func (c *Client) Everything(ctx context.Context) ([]*v1.Container, map[string]*v1.PodSandbox, error) {
	pods, err := c.Runtime.ListPodSandbox(ctx, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("list pods: %w", err)
	}
	containers, err := c.Runtime.ListContainers(ctx, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("list containers: %w", err)
	}
	byID := make(map[string]*v1.PodSandbox, len(pods))
	for _, p := range pods {
		byID[p.Id] = p
	}
	return containers, byID, nil
}

// Target is what an argument that may name a pod or a container means; one of the two is nil.
type Target struct {
	Pod       *v1.PodSandbox
	Container *v1.Container
}

// PodOrContainer finds a pod or a container. A pod's name goes before a container's of the same name.
func (c *Client) PodOrContainer(ctx context.Context, arg string) (Target, error) {
	containers, pods, err := c.Everything(ctx)
	if err != nil {
		return Target{}, err
	}
	list := make([]*v1.PodSandbox, 0, len(pods))
	for _, p := range pods {
		list = append(list, p)
	}
	p, podErr := match("pod", arg, podCandidates(list))
	ctr, ctrErr := match("container", arg, containerCandidates(containers, pods))
	switch {
	case podErr == nil && (p.Id == arg || podNamed(p, arg)):
		return Target{Pod: p}, nil
	case ctrErr == nil && ctr.Id == arg:
		return Target{Container: ctr}, nil
	case podErr != nil && !errors.Is(podErr, errNotFound):
		return Target{}, podErr
	case ctrErr != nil && !errors.Is(ctrErr, errNotFound):
		return Target{}, ctrErr
	case podErr == nil && ctrErr == nil:
		return Target{}, fmt.Errorf("%q is ambiguous: pod %s and container %s", arg, Short(p.Id), Short(ctr.Id))
	case podErr == nil:
		return Target{Pod: p}, nil
	case ctrErr == nil:
		return Target{Container: ctr}, nil
	}
	return Target{}, fmt.Errorf("no pod and no container %q: %w", arg, errNotFound)
}

func podCandidates(pods []*v1.PodSandbox) []candidate[*v1.PodSandbox] {
	all := make([]candidate[*v1.PodSandbox], 0, len(pods))
	for _, p := range pods {
		all = append(all, candidate[*v1.PodSandbox]{
			item: p, id: p.Id, names: podNames(p),
			live:  p.State == v1.PodSandboxState_SANDBOX_READY,
			shown: PodName(p),
		})
	}
	return all
}

func podNames(p *v1.PodSandbox) []string { return []string{p.Metadata.GetName(), PodName(p)} }

func podNamed(p *v1.PodSandbox, arg string) bool { return slices.Contains(podNames(p), arg) }

func containerCandidates(containers []*v1.Container, pods map[string]*v1.PodSandbox) []candidate[*v1.Container] {
	all := make([]candidate[*v1.Container], 0, len(containers))
	for _, ctr := range containers {
		name := ctr.Metadata.GetName()
		names := []string{name}
		shown := name
		if p, ok := pods[ctr.PodSandboxId]; ok {
			names = append(names, p.Metadata.GetName()+"/"+name, PodName(p)+"/"+name)
			shown = PodName(p) + "/" + name
		}
		all = append(all, candidate[*v1.Container]{
			item: ctr, id: ctr.Id, names: names, shown: shown,
			live: ctr.State == v1.ContainerState_CONTAINER_RUNNING,
		})
	}
	return all
}

// PodName is namespace/name.
func PodName(p *v1.PodSandbox) string {
	return p.Metadata.GetNamespace() + "/" + p.Metadata.GetName()
}

// Short is an id as tables show it.
func Short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(13, len(id))]
}

// OneContainer finds a container, or the only one of a pod: running ones go before others.
func (c *Client) OneContainer(ctx context.Context, arg string) (*v1.Container, error) {
	containers, pods, err := c.Everything(ctx)
	if err != nil {
		return nil, err
	}
	x, err := match("container", arg, containerCandidates(containers, pods))
	if !errors.Is(err, errNotFound) {
		return x, err
	}
	t, podErr := c.PodOrContainer(ctx, arg)
	if podErr != nil {
		return nil, podErr
	}
	var of, running []*v1.Container
	for _, x := range containers {
		if x.PodSandboxId != t.Pod.GetId() {
			continue
		}
		of = append(of, x)
		if x.State == v1.ContainerState_CONTAINER_RUNNING {
			running = append(running, x)
		}
	}
	switch {
	case len(running) == 1:
		return running[0], nil
	case len(of) == 1:
		return of[0], nil
	case len(of) == 0:
		return nil, fmt.Errorf("pod %s has no containers", PodName(t.Pod))
	}
	var names []string
	for _, x := range of {
		names = append(names, PodName(t.Pod)+"/"+x.Metadata.GetName())
	}
	slices.Sort(names)
	return nil, fmt.Errorf("pod %s has several containers: %s", PodName(t.Pod), strings.Join(names, ", "))
}
