package cri

import (
	"slices"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// defaultInterface is what CNI calls the interface that a pod's own address is on.
const defaultInterface = "eth0"

func number(n uint64) *runtime.UInt64Value { return &runtime.UInt64Value{Value: n} }

func fromStats(c *pod.Container, s *pod.Stats) *runtime.ContainerStats {
	return &runtime.ContainerStats{
		Attributes: &runtime.ContainerAttributes{
			Id: c.ID, Metadata: fromContainerMetadata(&c.Spec), Labels: c.Spec.Labels, Annotations: c.Spec.Annotations,
		},
		Cpu:           fromCPU(s),
		Memory:        fromMemory(s),
		WritableLayer: fromLayer(s.Layer),
		Swap:          fromSwap(s),
		Io:            fromIO(s),
	}
}

// fromCPU leaves usage_nano_cores out where there is no rate: it needs two readings.
func fromCPU(s *pod.Stats) *runtime.CpuUsage {
	out := &runtime.CpuUsage{
		Timestamp: nanos(s.At), UsageCoreNanoSeconds: number(uint64(max(0, s.CPUUsage))), Psi: fromStall(s.CPUStall),
	}
	if s.CPURate != nil {
		out.UsageNanoCores = number(*s.CPURate)
	}
	return out
}

func fromMemory(s *pod.Stats) *runtime.MemoryUsage {
	m := &runtime.MemoryUsage{
		Timestamp:       nanos(s.At),
		WorkingSetBytes: number(s.MemoryWorkingSet),
		UsageBytes:      number(s.MemoryUsage),
		RssBytes:        number(s.MemoryRSS),
		PageFaults:      number(s.PageFaults),
		MajorPageFaults: number(s.MajorPageFaults),
		Psi:             fromStall(s.MemoryStall),
	}
	// "This is defined as the memory limit - workingSetBytes."
	if s.MemoryLimit > 0 {
		m.AvailableBytes = number(s.MemoryLimit - min(s.MemoryLimit, s.MemoryWorkingSet))
	}
	return m
}

func fromSwap(s *pod.Stats) *runtime.SwapUsage {
	out := &runtime.SwapUsage{Timestamp: nanos(s.At), SwapUsageBytes: number(s.SwapUsage)}
	if s.SwapLimit != nil {
		out.SwapAvailableBytes = number(*s.SwapLimit - min(*s.SwapLimit, s.SwapUsage))
	}
	return out
}

func fromLayer(u *pod.Usage) *runtime.FilesystemUsage {
	if u == nil {
		return nil
	}
	return &runtime.FilesystemUsage{
		Timestamp: nanos(u.At), FsId: &runtime.FilesystemIdentifier{Mountpoint: u.Mountpoint},
		UsedBytes: number(u.Bytes), InodesUsed: number(u.Inodes),
	}
}

// fromIO is nil where there is no pressure to tell of: the message holds nothing else.
func fromIO(s *pod.Stats) *runtime.IoUsage {
	if s.IOStall == nil {
		return nil
	}
	return &runtime.IoUsage{Timestamp: nanos(s.At), Psi: fromStall(s.IOStall)}
}

func fromStall(s *pod.Stall) *runtime.PsiStats {
	if s == nil {
		return nil
	}
	return &runtime.PsiStats{Full: fromStallTime(s.Full), Some: fromStallTime(s.Some)}
}

func fromStallTime(t pod.StallTime) *runtime.PsiData {
	return &runtime.PsiData{Total: uint64(t.Total), Avg10: t.Avg10, Avg60: t.Avg60, Avg300: t.Avg300}
}

func fromPodStats(sb *pod.Sandbox, s *pod.Stats, containers []*runtime.ContainerStats) *runtime.PodSandboxStats {
	return &runtime.PodSandboxStats{
		Attributes: &runtime.PodSandboxAttributes{
			Id: sb.ID, Metadata: fromMetadata(sb.Spec.Metadata), Labels: sb.Spec.Labels, Annotations: sb.Spec.Annotations,
		},
		Linux: &runtime.LinuxPodSandboxStats{
			Cpu: fromCPU(s), Memory: fromMemory(s), Io: fromIO(s), Network: fromNetworkUsage(s.Network),
			Process:    &runtime.ProcessUsage{Timestamp: nanos(s.At), ProcessCount: number(s.Processes)},
			Containers: containers,
		},
	}
}

// fromNetworkUsage puts eth0, or else the first interface, where the CRI has the default one.
func fromNetworkUsage(n *pod.NetworkUsage) *runtime.NetworkUsage {
	if n == nil {
		return nil
	}
	def := max(0, slices.IndexFunc(n.Interfaces, func(i pod.InterfaceUsage) bool { return i.Name == defaultInterface }))
	out := &runtime.NetworkUsage{Timestamp: nanos(n.At)}
	for i, iface := range n.Interfaces {
		usage := &runtime.NetworkInterfaceUsage{
			Name: iface.Name, RxBytes: number(iface.RxBytes), RxErrors: number(iface.RxErrors),
			TxBytes: number(iface.TxBytes), TxErrors: number(iface.TxErrors),
		}
		if i == def {
			out.DefaultInterface = usage
		} else {
			out.Interfaces = append(out.Interfaces, usage)
		}
	}
	return out
}
