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

// GetContainerEvents answers Unimplemented; the kubelet then lists instead.
func (s *Service) GetContainerEvents(*runtime.GetEventsRequest, runtime.RuntimeService_GetContainerEventsServer) error {
	return unbuilt("GetContainerEvents")
}

// ListMetricDescriptors answers Unimplemented.
func (s *Service) ListMetricDescriptors(context.Context, *runtime.ListMetricDescriptorsRequest) (*runtime.ListMetricDescriptorsResponse, error) {
	return nil, unbuilt("ListMetricDescriptors")
}

// ListPodSandboxMetrics answers Unimplemented.
func (s *Service) ListPodSandboxMetrics(context.Context, *runtime.ListPodSandboxMetricsRequest) (*runtime.ListPodSandboxMetricsResponse, error) {
	return nil, unbuilt("ListPodSandboxMetrics")
}

// StreamPodSandboxMetrics answers Unimplemented.
func (s *Service) StreamPodSandboxMetrics(*runtime.StreamPodSandboxMetricsRequest, runtime.RuntimeService_StreamPodSandboxMetricsServer) error {
	return unbuilt("StreamPodSandboxMetrics")
}

// UpdatePodSandboxResources answers Unimplemented.
func (s *Service) UpdatePodSandboxResources(context.Context, *runtime.UpdatePodSandboxResourcesRequest) (*runtime.UpdatePodSandboxResourcesResponse, error) {
	return nil, unbuilt("UpdatePodSandboxResources")
}
