package manifest

import (
	"fmt"
	"strings"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kubelet's figures: a period of 100 ms, at least 1 ms of it, at least 2 shares of 1024 a CPU.
const (
	cpuPeriod = 100_000
	minQuota  = 1_000
	minShares = 2
	perCPU    = 1024
	milli     = 1000
)

func resources(in core.ResourceRequirements) (*v1.LinuxContainerResources, error) {
	out := &v1.LinuxContainerResources{}
	for name, q := range in.Limits {
		switch {
		case name == core.ResourceCPU:
			out.CpuPeriod = cpuPeriod
			out.CpuQuota = max(q.MilliValue()*cpuPeriod/milli, minQuota)
		case name == core.ResourceMemory:
			out.MemoryLimitInBytes = q.Value()
		case strings.HasPrefix(string(name), core.ResourceHugePagesPrefix):
			h, err := hugepages(string(name), q)
			if err != nil {
				return nil, err
			}
			out.HugepageLimits = append(out.HugepageLimits, h)
		default:
			return nil, fmt.Errorf("resources.limits: %s is not supported: only cpu, memory and hugepages are", name)
		}
	}
	for name := range in.Requests {
		if name != core.ResourceCPU && name != core.ResourceMemory && !strings.HasPrefix(string(name), core.ResourceHugePagesPrefix) {
			return nil, fmt.Errorf("resources.requests: %s is not supported: only cpu, memory and hugepages are", name)
		}
	}
	cpu, asked := in.Requests[core.ResourceCPU]
	if !asked {
		cpu, asked = in.Limits[core.ResourceCPU]
	}
	if asked {
		out.CpuShares = max(cpu.MilliValue()*perCPU/milli, minShares)
	}
	return out, nil
}

// hugepages writes the size as the kernel's cgroup files do: 2MB, 1GB.
func hugepages(name string, limit resource.Quantity) (*v1.HugepageLimit, error) {
	text := strings.TrimPrefix(name, core.ResourceHugePagesPrefix)
	size, err := resource.ParseQuantity(text)
	if err != nil {
		return nil, fmt.Errorf("resources.limits: %s: %q is not a page size", name, text)
	}
	units := []string{"B", "KB", "MB", "GB"}
	n, unit := size.Value(), 0
	for n >= 1024 && n%1024 == 0 && unit < len(units)-1 {
		n /= 1024
		unit++
	}
	return &v1.HugepageLimit{PageSize: fmt.Sprintf("%d%s", n, units[unit]), Limit: uint64(limit.Value())}, nil
}
