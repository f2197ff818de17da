package nri

import (
	"maps"
	"math"

	"github.com/containerd/nri/pkg/api"

	"gantry/internal/pod"
)

// resourcesToAPI shows what is set. Plugins may expect the parts to be there, so they are.
func resourcesToAPI(r *pod.Resources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	x := &r.Extra
	n := &api.LinuxResources{
		Memory: &api.LinuxMemory{
			Limit: optional(r.MemoryLimit), Swap: optional(r.MemorySwapLimit), Reservation: optional(x.MemoryReservation),
			Kernel: optional(x.KernelMemory), KernelTcp: optional(x.KernelTCPMemory), Swappiness: api.UInt64(x.Swappiness),
			DisableOomKiller: api.Bool(x.DisableOOMKiller), UseHierarchy: api.Bool(x.UseHierarchy),
		},
		Cpu: &api.LinuxCPU{
			Quota: optional(r.CPUQuota), Shares: positive(r.CPUShares), Period: positive(r.CPUPeriod), Cpus: r.CPUSetCPUs, Mems: r.CPUSetMems,
			RealtimeRuntime: api.Int64(x.RealtimeRuntime),
		},
		Unified:      maps.Clone(r.Unified),
		BlockioClass: api.String(x.BlockIOClass), RdtClass: api.String(x.RDTClass),
	}
	if x.RealtimePeriod != 0 {
		n.Cpu.RealtimePeriod = api.UInt64(x.RealtimePeriod)
	}
	for _, h := range r.HugepageLimits {
		n.HugepageLimits = append(n.HugepageLimits, &api.HugepageLimit{PageSize: h.PageSize, Limit: h.Limit})
	}
	if x.PidsLimit != nil {
		n.Pids = &api.LinuxPids{Limit: *x.PidsLimit}
	}
	for _, d := range x.DeviceRules {
		n.Devices = append(n.Devices, &api.LinuxDeviceCgroup{
			Allow: d.Allow, Type: d.Type, Major: api.Int64(d.Major), Minor: api.Int64(d.Minor), Access: d.Access,
		})
	}
	return n
}

func optional(n int64) *api.OptionalInt64 {
	if n == 0 {
		return nil
	}
	return api.Int64(n)
}

func positive(n int64) *api.OptionalUInt64 {
	if n <= 0 {
		return nil
	}
	return api.UInt64(uint64(n))
}

// resourcesFromAPI takes over everything; a zero where the kernel knows none means "not set".
func resourcesFromAPI(n *api.LinuxResources) pod.Resources {
	mem, cpu := n.GetMemory(), n.GetCpu()
	r := pod.Resources{
		CPUPeriod: bounded(cpu.GetPeriod().GetValue()), CPUQuota: cpu.GetQuota().GetValue(), CPUShares: bounded(cpu.GetShares().GetValue()),
		CPUSetCPUs: cpu.GetCpus(), CPUSetMems: cpu.GetMems(),
		MemoryLimit: mem.GetLimit().GetValue(), MemorySwapLimit: mem.GetSwap().GetValue(),
		Extra: pod.ExtraResources{
			MemoryReservation: mem.GetReservation().GetValue(), KernelMemory: mem.GetKernel().GetValue(),
			KernelTCPMemory: mem.GetKernelTcp().GetValue(), Swappiness: mem.GetSwappiness().Get(),
			DisableOOMKiller: mem.GetDisableOomKiller().Get(), UseHierarchy: mem.GetUseHierarchy().Get(),
			RealtimeRuntime: cpu.GetRealtimeRuntime().Get(), RealtimePeriod: cpu.GetRealtimePeriod().GetValue(),
			BlockIOClass: n.GetBlockioClass().Get(), RDTClass: n.GetRdtClass().Get(),
		},
	}
	if len(n.GetUnified()) > 0 {
		r.Unified = maps.Clone(n.GetUnified())
	}
	for _, h := range n.GetHugepageLimits() {
		r.HugepageLimits = append(r.HugepageLimits, pod.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	if p := n.GetPids(); p != nil {
		limit := p.GetLimit()
		r.Extra.PidsLimit = &limit
	}
	for _, d := range n.GetDevices() {
		r.Extra.DeviceRules = append(r.Extra.DeviceRules, pod.DeviceRule{
			Allow: d.GetAllow(), Type: d.GetType(), Major: d.GetMajor().Get(), Minor: d.GetMinor().Get(), Access: d.GetAccess(),
		})
	}
	return r
}

func bounded(n uint64) int64 { return int64(min(n, math.MaxInt64)) } //nolint:gosec // it is in bounds

// updatesFromAPI leaves out the empty entries that the library makes.
func updatesFromAPI(updates []*api.ContainerUpdate) []pod.ContainerUpdate {
	var all []pod.ContainerUpdate
	for _, u := range updates {
		if u != nil {
			all = append(all, pod.ContainerUpdate{
				Container: u.GetContainerId(), Resources: resourcesFromAPI(u.GetLinux().GetResources()), IgnoreFailure: u.GetIgnoreFailure(),
			})
		}
	}
	return all
}
