package cri

import (
	"context"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// ContainerStats reads one container's statistics.
func (s *Service) ContainerStats(ctx context.Context, req *runtime.ContainerStatsRequest) (*runtime.ContainerStatsResponse, error) {
	if err := checkID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	c, err := s.views.Container(ctx, req.GetContainerId())
	if err != nil {
		return nil, err
	}
	st, err := s.views.ContainerStats(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	return &runtime.ContainerStatsResponse{Stats: fromStats(c, st)}, nil
}

// ListContainerStats reads the running containers that the filter lets through.
func (s *Service) ListContainerStats(ctx context.Context, req *runtime.ListContainerStatsRequest) (*runtime.ListContainerStatsResponse, error) {
	list, err := s.listStats(ctx, req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtime.ListContainerStatsResponse{Stats: list}, nil
}

// StreamContainerStats is ListContainerStats in messages of bounded size.
func (s *Service) StreamContainerStats(req *runtime.StreamContainerStatsRequest, stream runtime.RuntimeService_StreamContainerStatsServer) error {
	list, err := s.listStats(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	return chunks(list, func(part []*runtime.ContainerStats) error {
		return stream.Send(&runtime.StreamContainerStatsResponse{ContainerStats: part})
	})
}

func (s *Service) listStats(ctx context.Context, f *runtime.ContainerStatsFilter) ([]*runtime.ContainerStats, error) {
	readings, err := s.readings(ctx, &runtime.ContainerFilter{
		Id: f.GetId(), PodSandboxId: f.GetPodSandboxId(), LabelSelector: f.GetLabelSelector(),
	})
	if err != nil {
		return nil, err
	}
	var out []*runtime.ContainerStats
	for _, r := range readings {
		out = append(out, fromStats(r.container, r.stats))
	}
	return out, nil
}

// reading is what a running container used when it was asked.
type reading struct {
	container *pod.Container
	stats     *pod.Stats
}

// readings leaves out what ended between the list and the reading.
func (s *Service) readings(ctx context.Context, f *runtime.ContainerFilter) ([]reading, error) {
	var out []reading
	for _, c := range s.filterContainers(ctx, f) {
		if c.State != pod.ContainerRunning {
			continue
		}
		st, err := s.views.ContainerStats(ctx, c.ID)
		if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, reading{c, st})
	}
	return out, nil
}

// PodSandboxStats adds up the running containers of one sandbox.
func (s *Service) PodSandboxStats(ctx context.Context, req *runtime.PodSandboxStatsRequest) (*runtime.PodSandboxStatsResponse, error) {
	if err := checkID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	sb, err := s.pods.Pod(ctx, req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	readings, err := s.readings(ctx, &runtime.ContainerFilter{PodSandboxId: sb.ID})
	if err != nil {
		return nil, err
	}
	return &runtime.PodSandboxStatsResponse{Stats: fromPodStats(sb, readings)}, nil
}

// ListPodSandboxStats adds up the containers of every ready sandbox that the filter lets through.
func (s *Service) ListPodSandboxStats(ctx context.Context, req *runtime.ListPodSandboxStatsRequest) (*runtime.ListPodSandboxStatsResponse, error) {
	list, err := s.listPodStats(ctx, req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtime.ListPodSandboxStatsResponse{Stats: list}, nil
}

// StreamPodSandboxStats is ListPodSandboxStats in messages of bounded size.
func (s *Service) StreamPodSandboxStats(req *runtime.StreamPodSandboxStatsRequest, stream runtime.RuntimeService_StreamPodSandboxStatsServer) error {
	list, err := s.listPodStats(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	return chunks(list, func(part []*runtime.PodSandboxStats) error {
		return stream.Send(&runtime.StreamPodSandboxStatsResponse{PodSandboxStats: part})
	})
}

func (s *Service) listPodStats(ctx context.Context, f *runtime.PodSandboxStatsFilter) ([]*runtime.PodSandboxStats, error) {
	readings, err := s.readings(ctx, nil)
	if err != nil {
		return nil, err
	}
	bySandbox := make(map[string][]reading)
	for _, r := range readings {
		bySandbox[r.container.SandboxID] = append(bySandbox[r.container.SandboxID], r)
	}
	ready := &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY}
	var out []*runtime.PodSandboxStats
	for _, sb := range s.filterPods(ctx, &runtime.PodSandboxFilter{Id: f.GetId(), LabelSelector: f.GetLabelSelector(), State: ready}) {
		out = append(out, fromPodStats(sb, bySandbox[sb.ID]))
	}
	return out, nil
}
