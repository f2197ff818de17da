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
	st, err := s.statistics.ContainerStats(ctx, c.ID)
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
	return s.statsOf(ctx, s.filterContainers(ctx, &runtime.ContainerFilter{
		Id: f.GetId(), PodSandboxId: f.GetPodSandboxId(), LabelSelector: f.GetLabelSelector(), State: running,
	}))
}

// statsOf leaves out what ended meanwhile.
func (s *Service) statsOf(ctx context.Context, containers []*pod.Container) ([]*runtime.ContainerStats, error) {
	return mapped(containers, func(c *pod.Container) (*runtime.ContainerStats, error) {
		st, err := s.statistics.ContainerStats(ctx, c.ID)
		if notRunning(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return fromStats(c, st), nil
	})
}

var (
	running = &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING}
	ready   = &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY}
)

func notRunning(err error) bool { return errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) }

// PodSandboxStats reads what a sandbox uses as a whole, and its running containers.
func (s *Service) PodSandboxStats(ctx context.Context, req *runtime.PodSandboxStatsRequest) (*runtime.PodSandboxStatsResponse, error) {
	if err := checkID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	sb, err := s.pods.Pod(ctx, req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	containers, err := s.listStats(ctx, &runtime.ContainerStatsFilter{PodSandboxId: sb.ID})
	if err != nil {
		return nil, err
	}
	st, err := s.podStats(ctx, sb, containers)
	if err != nil {
		return nil, err
	}
	return &runtime.PodSandboxStatsResponse{Stats: st}, nil
}

// ListPodSandboxStats reads every ready sandbox that the filter lets through.
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
	containers := s.runningBySandbox(ctx)
	pods := s.filterPods(ctx, &runtime.PodSandboxFilter{Id: f.GetId(), LabelSelector: f.GetLabelSelector(), State: ready})
	return mapped(pods, func(sb *pod.Sandbox) (*runtime.PodSandboxStats, error) {
		of, err := s.statsOf(ctx, containers[sb.ID])
		if err != nil {
			return nil, err
		}
		st, err := s.podStats(ctx, sb, of)
		if errdefs.IsNotFound(err) { // removed meanwhile
			return nil, nil
		}
		return st, err
	})
}

func (s *Service) runningBySandbox(ctx context.Context) map[string][]*pod.Container {
	all := make(map[string][]*pod.Container)
	for _, c := range s.filterContainers(ctx, &runtime.ContainerFilter{State: running}) {
		all[c.SandboxID] = append(all[c.SandboxID], c)
	}
	return all
}

func (s *Service) podStats(ctx context.Context, sb *pod.Sandbox, containers []*runtime.ContainerStats) (*runtime.PodSandboxStats, error) {
	st, err := s.statistics.PodStats(ctx, sb.ID)
	if err != nil {
		return nil, err
	}
	return fromPodStats(sb, st, containers), nil
}
