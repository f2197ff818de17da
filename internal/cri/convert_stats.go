package cri

import (
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

func number(n uint64) *runtime.UInt64Value { return &runtime.UInt64Value{Value: n} }

func fromStats(c *pod.Container, s *pod.Stats) *runtime.ContainerStats {
	return &runtime.ContainerStats{
		Attributes: &runtime.ContainerAttributes{
			Id: c.ID, Metadata: fromContainerMetadata(&c.Spec), Labels: c.Spec.Labels, Annotations: c.Spec.Annotations,
		},
		Cpu:    fromCPU(s),
		Memory: fromMemory(s),
		Swap:   &runtime.SwapUsage{Timestamp: nanos(s.At), SwapUsageBytes: number(s.SwapUsage)},
	}
}

// fromCPU leaves usage_nano_cores out: a rate needs two readings, and the kubelet takes its own.
func fromCPU(s *pod.Stats) *runtime.CpuUsage {
	return &runtime.CpuUsage{Timestamp: nanos(s.At), UsageCoreNanoSeconds: number(uint64(max(0, s.CPUUsage)))}
}

func fromMemory(s *pod.Stats) *runtime.MemoryUsage {
	m := &runtime.MemoryUsage{
		Timestamp:       nanos(s.At),
		WorkingSetBytes: number(s.MemoryWorkingSet),
		UsageBytes:      number(s.MemoryUsage),
		RssBytes:        number(s.MemoryRSS),
		PageFaults:      number(s.PageFaults),
		MajorPageFaults: number(s.MajorPageFaults),
	}
	// "This is defined as the memory limit - workingSetBytes."
	if s.MemoryLimit > 0 {
		m.AvailableBytes = number(s.MemoryLimit - min(s.MemoryLimit, s.MemoryWorkingSet))
	}
	return m
}

// fromPodStats adds up containers. A pod without a running one has zeros and the time of asking.
func fromPodStats(sb *pod.Sandbox, readings []reading) *runtime.PodSandboxStats {
	sum := pod.Stats{At: time.Now()}
	linux := &runtime.LinuxPodSandboxStats{}
	for _, r := range readings {
		sum.CPUUsage += r.stats.CPUUsage
		sum.MemoryUsage += r.stats.MemoryUsage
		sum.MemoryWorkingSet += r.stats.MemoryWorkingSet
		sum.MemoryRSS += r.stats.MemoryRSS
		sum.PageFaults += r.stats.PageFaults
		sum.MajorPageFaults += r.stats.MajorPageFaults
		sum.Processes += r.stats.Processes
		linux.Containers = append(linux.Containers, fromStats(r.container, r.stats))
	}
	linux.Cpu, linux.Memory = fromCPU(&sum), fromMemory(&sum)
	linux.Process = &runtime.ProcessUsage{Timestamp: nanos(sum.At), ProcessCount: number(sum.Processes)}
	return &runtime.PodSandboxStats{
		Attributes: &runtime.PodSandboxAttributes{
			Id: sb.ID, Metadata: fromMetadata(sb.Spec.Metadata), Labels: sb.Spec.Labels, Annotations: sb.Spec.Annotations,
		},
		Linux: linux,
	}
}
