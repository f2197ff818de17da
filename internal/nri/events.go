package nri

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"

	"gantry/internal/pod"
)

// Listening says whether a plugin is connected.
func (n *NRI) Listening() bool { return n.roster.any() }

// Pod tells plugins of a sandbox. A refusal is errdefs.ErrFailedPrecondition and names the plugin.
func (n *NRI) Pod(ctx context.Context, ev *pod.SandboxEvent) error {
	// No plugin joins between being told of nothing and being shown nothing.
	defer n.adapt.BlockPluginSync().Unblock()
	if !n.told.advance(ev.Sandbox.Spec.Key, ev.At) || !n.roster.any() {
		return nil
	}
	sb := sandboxToAPI(ev.Sandbox)
	var err error
	switch ev.At {
	case pod.MomentRun:
		err = n.adapt.RunPodSandbox(ctx, &adaptation.RunPodSandboxRequest{Pod: sb})
	case pod.MomentUpdate:
		_, err = n.adapt.UpdatePodSandbox(ctx, &adaptation.UpdatePodSandboxRequest{
			Pod: sb, OverheadLinuxResources: resourcesToAPI(ev.Overhead), LinuxResources: resourcesToAPI(ev.Resources),
		})
	case pod.MomentUpdated:
		err = n.adapt.PostUpdatePodSandbox(ctx, &adaptation.PostUpdatePodSandboxRequest{Pod: sb})
	case pod.MomentStop:
		err = n.adapt.StopPodSandbox(ctx, &adaptation.StopPodSandboxRequest{Pod: sb})
	case pod.MomentRemove:
		err = n.adapt.RemovePodSandbox(ctx, &adaptation.RemovePodSandboxRequest{Pod: sb})
	default:
		return fmt.Errorf("NRI: a sandbox has no moment %q: %w", ev.At, errdefs.ErrInvalidArgument)
	}
	return n.refused(ctx, err)
}

// Container tells plugins of a container and returns what they want. A refusal is
// errdefs.ErrFailedPrecondition and names the plugin.
func (n *NRI) Container(ctx context.Context, ev *pod.ContainerEvent) (*pod.Answer, error) {
	defer n.adapt.BlockPluginSync().Unblock()
	key, answer := ev.Container.Spec.Key, &pod.Answer{}
	ended := ev.At == pod.MomentRemove && n.told.advance(key, pod.MomentStop)
	if !n.told.advance(key, ev.At) || !n.roster.any() {
		return answer, nil
	}
	if ended { // plugins hear of the end first, also of a container that never ran
		if err := n.tell(ctx, ev, pod.MomentStop, answer); err != nil {
			n.log.Warn("a plugin failed", "container", key, "at", pod.MomentStop, "error", err)
		}
	}
	if err := n.tell(ctx, ev, ev.At, answer); err != nil {
		return nil, n.refused(ctx, err)
	}
	return answer, nil
}

// tell makes the call for one moment and adds to answer what plugins want.
func (n *NRI) tell(ctx context.Context, ev *pod.ContainerEvent, at pod.Moment, answer *pod.Answer) error {
	sb, c := sandboxToAPI(ev.Sandbox), containerToAPI(ev)
	switch at {
	case pod.MomentCreate:
		return n.create(ctx, &adaptation.CreateContainerRequest{Pod: sb, Container: c}, answer)
	case pod.MomentCreated:
		return n.adapt.PostCreateContainer(ctx, &adaptation.PostCreateContainerRequest{Pod: sb, Container: c})
	case pod.MomentStart:
		return n.adapt.StartContainer(ctx, &adaptation.StartContainerRequest{Pod: sb, Container: c})
	case pod.MomentStarted:
		return n.adapt.PostStartContainer(ctx, &adaptation.PostStartContainerRequest{Pod: sb, Container: c})
	case pod.MomentUpdate:
		return n.resize(ctx, &adaptation.UpdateContainerRequest{Pod: sb, Container: c}, ev.Resources, answer)
	case pod.MomentUpdated:
		return n.adapt.PostUpdateContainer(ctx, &adaptation.PostUpdateContainerRequest{Pod: sb, Container: c})
	case pod.MomentStop:
		reply, err := n.adapt.StopContainer(ctx, &adaptation.StopContainerRequest{Pod: sb, Container: c})
		answer.Updates = append(answer.Updates, updatesFromAPI(reply.GetUpdate())...)
		return err
	case pod.MomentRemove:
		return n.adapt.RemoveContainer(ctx, &adaptation.RemoveContainerRequest{Pod: sb, Container: c})
	}
	return fmt.Errorf("a container has no moment %q: %w", at, errdefs.ErrInvalidArgument)
}

func (n *NRI) create(ctx context.Context, req *adaptation.CreateContainerRequest, answer *pod.Answer) error {
	before := namesIn(req.Container)
	reply, err := n.adapt.CreateContainer(ctx, req)
	if err != nil {
		return err
	}
	answer.Adjustment = adjustmentFromAPI(reply.GetAdjust(), before.gone(req.Container))
	answer.Updates = updatesFromAPI(reply.GetUpdate())
	return nil
}

// resize asks for other resources. The library's last update is that of the container itself, nil when
// no plugin said anything of it.
func (n *NRI) resize(ctx context.Context, req *adaptation.UpdateContainerRequest, asked *pod.Resources, answer *pod.Answer) error {
	req.LinuxResources = resourcesToAPI(asked)
	reply, err := n.adapt.UpdateContainer(ctx, req)
	if err != nil {
		return err
	}
	for _, u := range updatesFromAPI(reply.GetUpdate()) {
		if u.Container == req.GetContainer().GetId() {
			u.Resources.OOMScoreAdj = asked.OOMScoreAdj // NRI's resources do not have it
			answer.Resources = &u.Resources
			continue
		}
		answer.Updates = append(answer.Updates, u)
	}
	return nil
}

// stage is how much of a sandbox's or container's life was told.
type stage uint8

const (
	stageRuns stage = iota + 1
	stageStopped
)

// told is what plugins have heard of, or will be shown when they join: nothing is told of whose
// beginning was not, and no end twice.
type told struct {
	mu    sync.Mutex
	stage map[pod.Key]stage // guarded by mu
}

// adopt takes over what an earlier server has told.
func (t *told) adopt(pods []*pod.Sandbox, containers []*pod.ContainerEvent) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, sb := range pods {
		switch sb.State {
		case pod.SandboxReady:
			t.stage[sb.Spec.Key] = stageRuns
		case pod.SandboxNotReady:
			t.stage[sb.Spec.Key] = stageStopped
		}
	}
	for _, c := range containers {
		switch c.Container.State {
		case pod.ContainerCreated, pod.ContainerRunning:
			t.stage[c.Container.Spec.Key] = stageRuns
		case pod.ContainerExited:
			t.stage[c.Container.Spec.Key] = stageStopped
		}
	}
}

// advance notes a moment and says whether it is to be told.
func (t *told) advance(key pod.Key, at pod.Moment) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	has := t.stage[key]
	switch at {
	case pod.MomentRun, pod.MomentCreate:
		t.stage[key] = stageRuns
		return true
	case pod.MomentStop:
		if has == stageRuns {
			t.stage[key] = stageStopped
		}
		return has == stageRuns
	case pod.MomentRemove:
		delete(t.stage, key)
		return has != 0
	}
	return has != 0
}

func (t *told) knows(key pod.Key) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stage[key] != 0
}
