package pod

import (
	"cmp"
	"slices"
)

// ExtraResources are limits that plugins (NRI) may set. Zero and nil mean "not set".
type ExtraResources struct {
	MemoryReservation int64        `json:"memoryReservation,omitempty"` // bytes
	KernelMemory      int64        `json:"kernelMemory,omitempty"`      // bytes, cgroup v1
	KernelTCPMemory   int64        `json:"kernelTCPMemory,omitempty"`   // bytes, cgroup v1
	Swappiness        *uint64      `json:"swappiness,omitempty"`        // 0..100, cgroup v1
	DisableOOMKiller  *bool        `json:"disableOOMKiller,omitempty"`  // cgroup v1
	UseHierarchy      *bool        `json:"useHierarchy,omitempty"`      // cgroup v1
	RealtimeRuntime   *int64       `json:"realtimeRuntime,omitempty"`   // µs a period, cgroup v1
	RealtimePeriod    uint64       `json:"realtimePeriod,omitempty"`    // µs, cgroup v1
	PidsLimit         *int64       `json:"pidsLimit,omitempty"`         // <0 unlimited
	BlockIOClass      *string      `json:"blockIOClass,omitempty"`      // "" takes the class away
	RDTClass          *string      `json:"rdtClass,omitempty"`          // "" takes the class away
	DeviceRules       []DeviceRule `json:"deviceRules,omitempty"`       // after those of the container's devices
}

// with is Resources.With.
func (x ExtraResources) with(u *ExtraResources) ExtraResources {
	x.MemoryReservation = cmp.Or(u.MemoryReservation, x.MemoryReservation)
	x.KernelMemory = cmp.Or(u.KernelMemory, x.KernelMemory)
	x.KernelTCPMemory = cmp.Or(u.KernelTCPMemory, x.KernelTCPMemory)
	x.Swappiness = cmp.Or(u.Swappiness, x.Swappiness)
	x.DisableOOMKiller = cmp.Or(u.DisableOOMKiller, x.DisableOOMKiller)
	x.UseHierarchy = cmp.Or(u.UseHierarchy, x.UseHierarchy)
	x.RealtimeRuntime = cmp.Or(u.RealtimeRuntime, x.RealtimeRuntime)
	x.RealtimePeriod = cmp.Or(u.RealtimePeriod, x.RealtimePeriod)
	x.PidsLimit = cmp.Or(u.PidsLimit, x.PidsLimit)
	x.BlockIOClass = cmp.Or(u.BlockIOClass, x.BlockIOClass)
	x.RDTClass = cmp.Or(u.RDTClass, x.RDTClass)
	x.DeviceRules = slices.Concat(x.DeviceRules, u.DeviceRules)
	return x
}

// Fields names what is set, as NRI's protocol calls it, sorted: for whoever has to refuse what it
// cannot express.
func (x *ExtraResources) Fields() []string {
	var names []string
	for name, set := range map[string]bool{
		"memory.reservation":        x.MemoryReservation != 0,
		"memory.kernel":             x.KernelMemory != 0,
		"memory.kernel_tcp":         x.KernelTCPMemory != 0,
		"memory.swappiness":         x.Swappiness != nil,
		"memory.disable_oom_killer": x.DisableOOMKiller != nil,
		"memory.use_hierarchy":      x.UseHierarchy != nil,
		"cpu.realtime_runtime":      x.RealtimeRuntime != nil,
		"cpu.realtime_period":       x.RealtimePeriod != 0,
		"pids":                      x.PidsLimit != nil,
		"blockio_class":             x.BlockIOClass != nil,
		"rdt_class":                 x.RDTClass != nil,
		"devices":                   len(x.DeviceRules) > 0,
	} {
		if set {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
