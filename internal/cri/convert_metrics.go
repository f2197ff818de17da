package cri

import (
	"slices"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// baseLabels come first in every metric's labels. The first three are CRI-O's; the rest are what the
// kubelet put beside them as long as cAdvisor gave the metrics. For a pod as a whole container is "".
var baseLabels = []string{"id", "name", "image", "container", "pod", "namespace"}

// measured is what metrics are made of: a pod as a whole where container is nil.
type measured struct {
	*pod.Metrics
	sandbox   *pod.Sandbox
	container *pod.Container
}

func (m *measured) labels() []string {
	md := m.sandbox.Spec.Metadata
	if m.container == nil {
		return []string{m.sandbox.ID, "POD", "", "", md.Name, md.Namespace}
	}
	c := &m.container.Spec
	return []string{m.container.ID, c.Name, c.ImageName, c.Name, md.Name, md.Namespace}
}

// metric is one of cAdvisor's, with what it is made of.
type metric struct {
	name   string
	help   string
	kind   runtime.MetricType
	labels []string // behind baseLabels
	read   func(*measured) []sample
}

// sample is one value of a metric. Seconds are whole: the CRI's values have no fraction.
type sample struct {
	value  uint64
	labels []string
	at     int64 // nanoseconds since 1970 where it was not read just now
}

const (
	counter = runtime.MetricType_COUNTER
	gauge   = runtime.MetricType_GAUGE
)

// allMetrics lists every metric, in the order in which they are answered.
func allMetrics() []metric {
	return slices.Concat(cpuMetrics(), memoryMetrics(), pressureMetrics(), diskMetrics(), networkMetrics(), taskMetrics(), specMetrics())
}

func fromMetrics(all []metric, m *measured) []*runtime.Metric {
	out := make([]*runtime.Metric, 0, len(all))
	base := m.labels()
	for _, metric := range all {
		for _, s := range metric.read(m) {
			out = append(out, &runtime.Metric{
				Name: metric.name, Timestamp: s.at, MetricType: metric.kind, Value: number(s.value),
				LabelValues: append(slices.Clone(base), s.labels...),
			})
		}
	}
	return out
}

// always makes a metric of a number that every cgroup has.
func always(value func(*measured) uint64) func(*measured) []sample {
	return func(m *measured) []sample { return []sample{{value: value(m)}} }
}

// ofContainer makes a metric that a pod as a whole has not.
func ofContainer(value func(*measured) uint64) func(*measured) []sample {
	return func(m *measured) []sample {
		if m.container == nil {
			return nil
		}
		return []sample{{value: value(m)}}
	}
}

// ofEach makes a metric with a value for each of a list.
func ofEach[T any](list func(*measured) []T, one func(*T) []sample) func(*measured) []sample {
	return func(m *measured) (out []sample) {
		all := list(m)
		for i := range all {
			out = append(out, one(&all[i])...)
		}
		return out
	}
}
