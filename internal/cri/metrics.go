package cri

import (
	"context"
	"slices"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// ListMetricDescriptors lists what ListPodSandboxMetrics may hold.
func (s *Service) ListMetricDescriptors(context.Context, *runtime.ListMetricDescriptorsRequest) (*runtime.ListMetricDescriptorsResponse, error) {
	res := &runtime.ListMetricDescriptorsResponse{}
	for _, m := range allMetrics() {
		res.Descriptors = append(res.Descriptors, &runtime.MetricDescriptor{
			Name: m.name, Help: m.help, LabelKeys: append(slices.Clone(baseLabels), m.labels...),
		})
	}
	return res, nil
}

// ListPodSandboxMetrics reads the metrics of every ready sandbox and its running containers.
func (s *Service) ListPodSandboxMetrics(ctx context.Context, _ *runtime.ListPodSandboxMetricsRequest) (*runtime.ListPodSandboxMetricsResponse, error) {
	list, err := s.listMetrics(ctx)
	if err != nil {
		return nil, err
	}
	return &runtime.ListPodSandboxMetricsResponse{PodMetrics: list}, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in messages of bounded size.
func (s *Service) StreamPodSandboxMetrics(_ *runtime.StreamPodSandboxMetricsRequest, stream runtime.RuntimeService_StreamPodSandboxMetricsServer) error {
	list, err := s.listMetrics(stream.Context())
	if err != nil {
		return err
	}
	return chunks(list, func(part []*runtime.PodSandboxMetrics) error {
		return stream.Send(&runtime.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part})
	})
}

// listMetrics leaves out what ended meanwhile.
func (s *Service) listMetrics(ctx context.Context) ([]*runtime.PodSandboxMetrics, error) {
	containers := s.runningBySandbox(ctx)
	metrics := allMetrics()
	pods := s.filterPods(ctx, &runtime.PodSandboxFilter{State: ready})
	return mapped(pods, func(sb *pod.Sandbox) (*runtime.PodSandboxMetrics, error) {
		m, err := s.statistics.PodMetrics(ctx, sb.ID)
		if notRunning(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		of := &runtime.PodSandboxMetrics{PodSandboxId: sb.ID, Metrics: fromMetrics(metrics, &measured{sandbox: sb, Metrics: m})}
		of.ContainerMetrics, err = mapped(containers[sb.ID], func(c *pod.Container) (*runtime.ContainerMetrics, error) {
			m, failed := s.statistics.ContainerMetrics(ctx, c.ID)
			if notRunning(failed) {
				return nil, nil
			}
			if failed != nil {
				return nil, failed
			}
			return &runtime.ContainerMetrics{
				ContainerId: c.ID, Metrics: fromMetrics(metrics, &measured{sandbox: sb, container: c, Metrics: m}),
			}, nil
		})
		return of, err
	})
}
