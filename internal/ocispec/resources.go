package ocispec

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/pod"
)

// resources are those of a container that is being created. What its classes of block I/O and RDT mean is the
// engine's to add.
func resources(r *Request) (*specs.LinuxResources, error) {
	asked := r.Container.Resources
	asked.Extra.BlockIOClass, asked.Extra.RDTClass = nil, nil
	res, err := Resources(&asked, &r.Node)
	if err != nil {
		return nil, err
	}
	if res.Pids == nil && r.Node.SystemdCgroup {
		// Systemd bounds the processes of every unit that says nothing (DefaultTasksMax=).
		res.Pids = &specs.LinuxPids{Limit: unlimited()}
	}
	if r.Container.Security.Privileged {
		res.Devices = slices.Concat([]specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}, res.Devices)
		return res, nil
	}
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, d := range r.Devices {
		rules = append(rules, d.rule())
	}
	res.Devices = slices.Concat(rules, res.Devices)
	return res, nil
}

// Resources converts limits to the OCI form, which runtimes translate for v1 and v2. Without a swap
// limit of its own a container gets no swap beyond its memory, where the node accounts for swap.
func Resources(r *pod.Resources, node *Node) (*specs.LinuxResources, error) {
	res := &specs.LinuxResources{CPU: cpu(r), Memory: memory(r, node)}
	res.Pids, res.Unified = Processes(r.Unified)
	for _, h := range r.HugepageLimits {
		if !node.LimitsHugepages {
			if h.Limit == 0 {
				continue // the kubelet sends a zero for every page size
			}
			return nil, fmt.Errorf("hugepage_limits: %s: the node has no hugetlb cgroup controller: %w",
				h.PageSize, errdefs.ErrInvalidArgument)
		}
		res.HugepageLimits = append(res.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.PageSize, Limit: h.Limit})
	}
	return res, extras(res, &r.Extra, node)
}

// extras adds what only plugins ask for. What the kernel has no more is refused: runtimes ignore it.
func extras(res *specs.LinuxResources, x *pod.ExtraResources, node *Node) error {
	for _, field := range x.Fields() {
		if why := unknownTo(node, field, x); why != "" {
			return fmt.Errorf("NRI linux.resources.%s: %s: %w", field, why, errdefs.ErrNotImplemented)
		}
	}
	extraMemory(res, x)
	if x.RealtimeRuntime != nil || x.RealtimePeriod != 0 {
		if res.CPU == nil {
			res.CPU = &specs.LinuxCPU{}
		}
		res.CPU.RealtimeRuntime = x.RealtimeRuntime
		if x.RealtimePeriod != 0 {
			res.CPU.RealtimePeriod = &x.RealtimePeriod
		}
	}
	if x.PidsLimit != nil {
		res.Pids = &specs.LinuxPids{Limit: x.PidsLimit}
	}
	for _, d := range x.DeviceRules {
		res.Devices = append(res.Devices, specs.LinuxDeviceCgroup(d))
	}
	return nil
}

// unknownTo says why a node cannot do what a field asks for, "" if it can.
func unknownTo(node *Node, field string, x *pod.ExtraResources) string {
	v1 := []string{
		"memory.kernel_tcp", "memory.swappiness", "memory.disable_oom_killer", "cpu.realtime_runtime", "cpu.realtime_period",
	}
	switch {
	case node.CgroupV2 && slices.Contains(v1, field):
		return "cgroup v2 has none"
	case field == "memory.kernel":
		return "the kernel has no such limit since 5.16"
	case field == "memory.use_hierarchy" && !*x.UseHierarchy:
		return "the kernel accounts hierarchically"
	case field == "blockio_class", field == "rdt_class":
		return "a class is given when the container is created, and stays"
	}
	return ""
}

func extraMemory(res *specs.LinuxResources, x *pod.ExtraResources) {
	m := specs.LinuxMemory{Swappiness: x.Swappiness, DisableOOMKiller: x.DisableOOMKiller}
	if res.Memory != nil {
		m.Limit, m.Swap = res.Memory.Limit, res.Memory.Swap
	}
	if x.MemoryReservation != 0 {
		m.Reservation = &x.MemoryReservation
	}
	if x.KernelTCPMemory != 0 {
		m.KernelTCP = &x.KernelTCPMemory
	}
	if m != (specs.LinuxMemory{}) {
		res.Memory = &m
	}
}

// Processes takes pids.max out of settings of cgroup v2: what crun writes as it is, systemd resets. A limit that is nil
// is not said; -1 is none.
func Processes(unified map[string]string) (limit *specs.LinuxPids, rest map[string]string) {
	n, err := strconv.ParseInt(unified[pidsMax], 10, 64)
	switch {
	case unified[pidsMax] == "max":
		n = *unlimited()
	case err != nil || n <= 0:
		return nil, unified // absent, or the kernel's to judge
	}
	rest = maps.Clone(unified)
	delete(rest, pidsMax)
	if len(rest) == 0 {
		rest = nil
	}
	return &specs.LinuxPids{Limit: &n}, rest
}

const pidsMax = "pids.max"

func unlimited() *int64 {
	n := int64(-1)
	return &n
}

func cpu(r *pod.Resources) *specs.LinuxCPU {
	c := &specs.LinuxCPU{Cpus: r.CPUSetCPUs, Mems: r.CPUSetMems}
	if r.CPUPeriod > 0 {
		period := uint64(r.CPUPeriod)
		c.Period = &period
	}
	if r.CPUQuota != 0 {
		c.Quota = &r.CPUQuota
	}
	if r.CPUShares > 0 {
		shares := uint64(r.CPUShares)
		c.Shares = &shares
	}
	if *c == (specs.LinuxCPU{}) {
		return nil
	}
	return c
}

func memory(r *pod.Resources, node *Node) *specs.LinuxMemory {
	swap, _ := r.SwapBound()
	if r.MemoryLimit == 0 && (swap == 0 || !node.AccountsSwap) {
		return nil
	}
	m := &specs.LinuxMemory{}
	if r.MemoryLimit != 0 {
		m.Limit = &r.MemoryLimit
	}
	if !node.AccountsSwap {
		return m
	}
	m.Swap = &swap
	return m
}

// node is the entry of Linux.Devices, rule the one of the device cgroup.
func (d Device) node() specs.LinuxDevice {
	mode := d.Mode
	uid, gid := d.UID, d.GID
	return specs.LinuxDevice{
		Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: &mode, UID: &uid, GID: &gid,
	}
}

func (d Device) rule() specs.LinuxDeviceCgroup {
	major, minor := d.Major, d.Minor
	return specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &major, Minor: &minor, Access: d.Access}
}
