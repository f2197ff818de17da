package cri

import (
	"context"
	"math"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// CreateContainer makes a container that StartContainer only has to let go.
func (s *Service) CreateContainer(ctx context.Context, req *runtime.CreateContainerRequest) (*runtime.CreateContainerResponse, error) {
	if err := checkID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	spec, err := containerSpec(req)
	if err != nil {
		return nil, err
	}
	id, err := s.containers.CreateContainer(ctx, req.GetPodSandboxId(), spec)
	if err != nil {
		return nil, err
	}
	return &runtime.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer lets the container's process run.
func (s *Service) StartContainer(ctx context.Context, req *runtime.StartContainerRequest) (*runtime.StartContainerResponse, error) {
	if err := checkID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtime.StartContainerResponse{}, s.containers.StartContainer(ctx, req.GetContainerId())
}

// StopContainer signals, waits for the timeout and kills; an absent container is stopped.
func (s *Service) StopContainer(ctx context.Context, req *runtime.StopContainerRequest) (*runtime.StopContainerResponse, error) {
	if err := checkID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	grace, err := seconds("timeout", req.GetTimeout())
	if err != nil {
		return nil, err
	}
	return &runtime.StopContainerResponse{}, gone(s.containers.StopContainer(ctx, req.GetContainerId(), grace))
}

// RemoveContainer removes a container, running or not; an absent one is removed.
func (s *Service) RemoveContainer(ctx context.Context, req *runtime.RemoveContainerRequest) (*runtime.RemoveContainerResponse, error) {
	if err := checkID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtime.RemoveContainerResponse{}, gone(s.containers.RemoveContainer(ctx, req.GetContainerId()))
}

// ContainerStatus answers from memory.
func (s *Service) ContainerStatus(ctx context.Context, req *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error) {
	if err := checkID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	c, err := s.views.Container(ctx, req.GetContainerId())
	if err != nil {
		return nil, err
	}
	res := &runtime.ContainerStatusResponse{Status: fromContainerStatus(c)}
	if req.GetVerbose() {
		res.Info, err = containerInfo(c)
	}
	return res, err
}

// ListContainers lists the containers that the filter lets through.
func (s *Service) ListContainers(ctx context.Context, req *runtime.ListContainersRequest) (*runtime.ListContainersResponse, error) {
	f := req.GetFilter()
	return s.containerLists.give(s.filterContainers(ctx, f), f != nil, func(containers []*pod.Container) *runtime.ListContainersResponse {
		return &runtime.ListContainersResponse{Containers: fromContainers(containers)}
	}), nil
}

// StreamContainers is ListContainers in messages of bounded size.
func (s *Service) StreamContainers(req *runtime.StreamContainersRequest, stream runtime.RuntimeService_StreamContainersServer) error {
	return chunks(fromContainers(s.filterContainers(stream.Context(), req.GetFilter())), func(part []*runtime.Container) error {
		return stream.Send(&runtime.StreamContainersResponse{Containers: part})
	})
}

func fromContainers(containers []*pod.Container) []*runtime.Container {
	out := make([]*runtime.Container, 0, len(containers))
	for _, c := range containers {
		out = append(out, fromContainer(c))
	}
	return out
}

func (s *Service) filterContainers(ctx context.Context, f *runtime.ContainerFilter) []*pod.Container {
	var out []*pod.Container
	for _, c := range s.views.Containers(ctx) {
		if matchID(f.GetId(), c.ID) && matchID(f.GetPodSandboxId(), c.SandboxID) &&
			(f.GetState() == nil || f.GetState().GetState() == fromContainerState(c.State)) &&
			matchLabels(f.GetLabelSelector(), c.Spec.Labels) {
			out = append(out, c)
		}
	}
	return out
}

// seconds converts a timeout; what is longer than time.Duration can say becomes the longest.
func seconds(field string, n int64) (time.Duration, error) {
	if n < 0 {
		return 0, invalid(field, "%d is negative", n)
	}
	if n > math.MaxInt64/int64(time.Second) {
		return math.MaxInt64, nil
	}
	return time.Duration(n) * time.Second, nil
}
