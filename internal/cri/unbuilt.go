package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func unbuilt(method string) error {
	return fmt.Errorf("gantry does not have %s yet: %w", method, errdefs.ErrNotImplemented)
}

// CheckpointContainer answers Unimplemented.
func (s *Service) CheckpointContainer(context.Context, *runtime.CheckpointContainerRequest) (*runtime.CheckpointContainerResponse, error) {
	return nil, unbuilt("CheckpointContainer")
}

// CheckpointPod answers Unimplemented.
func (s *Service) CheckpointPod(context.Context, *runtime.CheckpointPodRequest) (*runtime.CheckpointPodResponse, error) {
	return nil, unbuilt("CheckpointPod")
}

// RestorePod answers Unimplemented.
func (s *Service) RestorePod(context.Context, *runtime.RestorePodRequest) (*runtime.RestorePodResponse, error) {
	return nil, unbuilt("RestorePod")
}
