package cri

import (
	"context"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// RunPodSandbox makes a sandbox and returns when it is ready.
func (s *Service) RunPodSandbox(ctx context.Context, req *runtime.RunPodSandboxRequest) (*runtime.RunPodSandboxResponse, error) {
	spec, err := sandboxSpec(req)
	if err != nil {
		return nil, err
	}
	id, err := s.pods.RunPod(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &runtime.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox stops what runs in the sandbox and gives back its network; an absent one is stopped.
func (s *Service) StopPodSandbox(ctx context.Context, req *runtime.StopPodSandboxRequest) (*runtime.StopPodSandboxResponse, error) {
	if err := checkID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtime.StopPodSandboxResponse{}, gone(s.pods.StopPod(ctx, req.GetPodSandboxId()))
}

// RemovePodSandbox removes the sandbox with its containers; an absent one is removed.
func (s *Service) RemovePodSandbox(ctx context.Context, req *runtime.RemovePodSandboxRequest) (*runtime.RemovePodSandboxResponse, error) {
	if err := checkID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtime.RemovePodSandboxResponse{}, gone(s.pods.RemovePod(ctx, req.GetPodSandboxId()))
}

// PodSandboxStatus answers with the sandbox and the statuses of its containers.
func (s *Service) PodSandboxStatus(ctx context.Context, req *runtime.PodSandboxStatusRequest) (*runtime.PodSandboxStatusResponse, error) {
	if err := checkID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	// Whoever also listens to events keeps the later of the two: no status may be older than it says.
	at := time.Now()
	sb, err := s.pods.Pod(ctx, req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	res := &runtime.PodSandboxStatusResponse{Status: fromSandboxStatus(sb), Timestamp: nanos(at)}
	for _, c := range s.views.Containers(ctx) {
		if c.SandboxID == sb.ID {
			res.ContainersStatuses = append(res.ContainersStatuses, fromContainerStatus(c))
		}
	}
	if req.GetVerbose() {
		res.Info, err = sandboxInfo(sb)
	}
	return res, err
}

// ListPodSandbox lists the sandboxes that the filter lets through.
func (s *Service) ListPodSandbox(ctx context.Context, req *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	f := req.GetFilter()
	return s.podLists.give(s.filterPods(ctx, f), f != nil, func(pods []*pod.Sandbox) *runtime.ListPodSandboxResponse {
		return &runtime.ListPodSandboxResponse{Items: fromSandboxes(pods)}
	}), nil
}

// StreamPodSandboxes is ListPodSandbox in messages of bounded size.
func (s *Service) StreamPodSandboxes(req *runtime.StreamPodSandboxesRequest, stream runtime.RuntimeService_StreamPodSandboxesServer) error {
	return chunks(fromSandboxes(s.filterPods(stream.Context(), req.GetFilter())), func(part []*runtime.PodSandbox) error {
		return stream.Send(&runtime.StreamPodSandboxesResponse{PodSandboxes: part})
	})
}

func fromSandboxes(pods []*pod.Sandbox) []*runtime.PodSandbox {
	out := make([]*runtime.PodSandbox, 0, len(pods))
	for _, sb := range pods {
		out = append(out, fromSandbox(sb))
	}
	return out
}

func (s *Service) filterPods(ctx context.Context, f *runtime.PodSandboxFilter) []*pod.Sandbox {
	var out []*pod.Sandbox
	for _, sb := range s.pods.Pods(ctx) {
		if matchID(f.GetId(), sb.ID) &&
			(f.GetState() == nil || f.GetState().GetState() == fromSandboxState(sb.State)) &&
			matchLabels(f.GetLabelSelector(), sb.Spec.Labels) {
			out = append(out, sb)
		}
	}
	return out
}
