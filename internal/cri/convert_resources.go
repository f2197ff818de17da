package cri

import (
	"regexp"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// pageSizes are written as the kernel's hugetlb controller writes them.
var pageSizes = regexp.MustCompile(`^[1-9][0-9]*[KMG]B$`)

// cpuLists are what cpuset takes: "0-3,7", with the kernel's stride form "0-31:2/8" left out.
var cpuLists = regexp.MustCompile(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`)

// resources returns nil for an absent message.
func resources(field string, r *runtime.LinuxContainerResources) (*pod.Resources, error) {
	if r == nil {
		return nil, nil
	}
	if err := checkResources(field, r); err != nil {
		return nil, err
	}
	out := &pod.Resources{
		CPUPeriod:       r.GetCpuPeriod(),
		CPUQuota:        r.GetCpuQuota(),
		CPUShares:       r.GetCpuShares(),
		MemoryLimit:     r.GetMemoryLimitInBytes(),
		MemorySwapLimit: r.GetMemorySwapLimitInBytes(),
		OOMScoreAdj:     r.GetOomScoreAdj(),
		CPUSetCPUs:      r.GetCpusetCpus(),
		CPUSetMems:      r.GetCpusetMems(),
		Unified:         cloned(r.GetUnified()),
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, pod.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return out, nil
}

func checkResources(field string, r *runtime.LinuxContainerResources) error {
	for _, n := range []struct {
		name     string
		value    int64
		min, max int64
	}{
		{"cpu_period", r.GetCpuPeriod(), 0, 1_000_000}, // the kernel's largest period is a second
		{"cpu_shares", r.GetCpuShares(), 0, 1 << 40},
		{"memory_limit_in_bytes", r.GetMemoryLimitInBytes(), 0, 1<<63 - 1},
		{"memory_swap_limit_in_bytes", r.GetMemorySwapLimitInBytes(), -1, 1<<63 - 1},
		{"oom_score_adj", r.GetOomScoreAdj(), -1000, 1000},
	} {
		if n.value < n.min || n.value > n.max {
			return invalid(field+"."+n.name, "%d is not between %d and %d", n.value, n.min, n.max)
		}
	}
	for _, c := range []struct{ name, value string }{
		{"cpuset_cpus", r.GetCpusetCpus()},
		{"cpuset_mems", r.GetCpusetMems()},
	} {
		if c.value != "" && !cpuLists.MatchString(c.value) {
			return invalid(field+"."+c.name, "%q is not a list like 0-3,7", c.value)
		}
	}
	for _, h := range r.GetHugepageLimits() {
		if !pageSizes.MatchString(h.GetPageSize()) {
			return invalid(field+".hugepage_limits.page_size", "%q is not a size like 2MB", h.GetPageSize())
		}
	}
	for file, value := range r.GetUnified() {
		if file == "" || strings.ContainsRune(file, '/') || strings.HasPrefix(file, ".") {
			return invalid(field+".unified", "%q is not a file of a cgroup", file)
		}
		if err := checkString(field+".unified", value); err != nil {
			return err
		}
	}
	return nil
}

func fromResources(r *pod.Resources) *runtime.LinuxContainerResources {
	out := &runtime.LinuxContainerResources{
		CpuPeriod:              r.CPUPeriod,
		CpuQuota:               r.CPUQuota,
		CpuShares:              r.CPUShares,
		MemoryLimitInBytes:     r.MemoryLimit,
		MemorySwapLimitInBytes: r.MemorySwapLimit,
		OomScoreAdj:            r.OOMScoreAdj,
		CpusetCpus:             r.CPUSetCPUs,
		CpusetMems:             r.CPUSetMems,
		Unified:                r.Unified,
	}
	for _, h := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &runtime.HugepageLimit{PageSize: h.PageSize, Limit: h.Limit})
	}
	return out
}
