package cri

import (
	"context"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateContainerResources applies new limits; what is zero stays as it is.
func (s *Service) UpdateContainerResources(ctx context.Context, req *runtime.UpdateContainerResourcesRequest) (*runtime.UpdateContainerResourcesResponse, error) {
	if err := checkID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if req.GetWindows() != nil {
		return nil, unsupported("windows", "this is not a Windows node")
	}
	if len(req.GetAnnotations()) > 0 {
		return nil, unsupported("annotations", "an update knows no annotations")
	}
	r, err := resources("linux", req.GetLinux())
	if err != nil {
		return nil, err
	}
	if r == nil {
		return nil, invalid("linux", "is required")
	}
	return &runtime.UpdateContainerResourcesResponse{}, s.resizer.UpdateContainer(ctx, req.GetContainerId(), r)
}

// UpdatePodSandboxResources takes the pod's new sums, after the kubelet has changed the pod's cgroup.
func (s *Service) UpdatePodSandboxResources(ctx context.Context, req *runtime.UpdatePodSandboxResourcesRequest) (*runtime.UpdatePodSandboxResourcesResponse, error) {
	if err := checkID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	overhead, err := resources("overhead", req.GetOverhead())
	if err != nil {
		return nil, err
	}
	sum, err := resources("resources", req.GetResources())
	if err != nil {
		return nil, err
	}
	return &runtime.UpdatePodSandboxResourcesResponse{}, s.resizer.UpdatePod(ctx, req.GetPodSandboxId(), overhead, sum)
}
