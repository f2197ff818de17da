package cri

import (
	"context"
	"fmt"
	"maps"
	"slices"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// CheckpointContainer writes a running container, which goes on, as an archive.
func (s *Service) CheckpointContainer(ctx context.Context, req *runtime.CheckpointContainerRequest) (*runtime.CheckpointContainerResponse, error) {
	if err := checkID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if err := checkAbs("location", req.GetLocation()); err != nil {
		return nil, err
	}
	limit, err := seconds("timeout", req.GetTimeout())
	if err != nil {
		return nil, err
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	return &runtime.CheckpointContainerResponse{}, s.checkpoints.CheckpointContainer(ctx, req.GetContainerId(), req.GetLocation())
}

// CheckpointPod writes running containers of a pod, of one moment, into the client's directory.
func (s *Service) CheckpointPod(ctx context.Context, req *runtime.CheckpointPodRequest) (*runtime.CheckpointPodResponse, error) {
	if err := checkID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := checkAbs("output_path", req.GetOutputPath()); err != nil {
		return nil, err
	}
	if len(req.GetContainerIds()) == 0 {
		return nil, invalid("container_ids", "is required")
	}
	for i, id := range req.GetContainerIds() {
		if err := checkID(fmt.Sprintf("container_ids[%d]", i), id); err != nil {
			return nil, err
		}
	}
	if err := noOptions(req.GetOptions()); err != nil {
		return nil, err
	}
	err := s.checkpoints.CheckpointPod(ctx, req.GetPodSandboxId(), req.GetOutputPath(), req.GetContainerIds())
	return &runtime.CheckpointPodResponse{}, err
}

// RestorePod makes a pod with created containers of what CheckpointPod wrote.
func (s *Service) RestorePod(ctx context.Context, req *runtime.RestorePodRequest) (*runtime.RestorePodResponse, error) {
	if err := checkAbs("checkpoint_path", req.GetCheckpointPath()); err != nil {
		return nil, err
	}
	spec, err := sandboxSpec(&runtime.RunPodSandboxRequest{Config: req.GetConfig(), RuntimeHandler: req.GetRuntimeHandler()})
	if err != nil {
		return nil, err
	}
	if err = noOptions(req.GetOptions()); err != nil {
		return nil, err
	}
	if len(req.GetContainerConfigs()) == 0 {
		return nil, invalid("container_configs", "is required")
	}
	var containers []*pod.ContainerSpec
	for i, c := range req.GetContainerConfigs() {
		var one *pod.ContainerSpec
		one, err = containerSpec(&runtime.CreateContainerRequest{Config: c, SandboxConfig: req.GetConfig()})
		if err != nil {
			return nil, fmt.Errorf("container_configs[%d]: %w", i, err)
		}
		if slices.ContainsFunc(containers, func(other *pod.ContainerSpec) bool { return other.Name == one.Name }) {
			return nil, invalid(fmt.Sprintf("container_configs[%d].metadata.name", i), "%q is there twice", one.Name)
		}
		containers = append(containers, one)
	}
	restored, err := s.checkpoints.RestorePod(ctx, req.GetCheckpointPath(), spec, containers)
	if err != nil {
		return nil, err
	}
	res := &runtime.RestorePodResponse{PodSandboxId: restored.ID}
	for _, name := range slices.Sorted(maps.Keys(restored.Containers)) {
		res.RestoredContainers = append(res.RestoredContainers, &runtime.RestoredContainer{Name: name, ContainerId: restored.Containers[name]})
	}
	return res, nil
}

// noOptions refuses options: this runtime has none.
func noOptions(options map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(options)) {
		return invalid("options", "%q is unknown; there are none", key)
	}
	return nil
}
