package nri

import (
	"reflect"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"

	"gantry/internal/pod"
)

// names are what plugins may take away from a container and the library does not tell.
type names struct {
	env     []string
	devices []string
}

func namesIn(c *api.Container) names {
	var n names
	for _, entry := range c.GetEnv() {
		name, _, _ := strings.Cut(entry, "=")
		n.env = append(n.env, name)
	}
	for _, d := range c.GetLinux().GetDevices() {
		n.devices = append(n.devices, d.GetPath())
	}
	return n
}

// gone is what c has no more. The library shows every plugin the container as those before it have
// adjusted it, and in the end the request is the container as it is to be; of variables and devices that
// were only taken away, the adjustment says nothing.
func (n names) gone(c *api.Container) names {
	after := namesIn(c)
	missing := func(before, after []string) []string {
		return slices.DeleteFunc(slices.Clone(before), func(name string) bool { return slices.Contains(after, name) })
	}
	return names{missing(n.env, after.env), missing(n.devices, after.devices)}
}

// adjustmentFromAPI takes over everything; nil when nothing is to be adjusted.
func adjustmentFromAPI(n *api.ContainerAdjustment, gone names) *pod.Adjustment {
	l := n.GetLinux()
	a := &pod.Adjustment{
		Annotations: editFromAPI(n.GetAnnotations()), Args: n.GetArgs(), RemoveEnv: gone.env, Hooks: hooksFromAPI(n.GetHooks()),
		RemoveDevices: gone.devices, CgroupsPath: l.GetCgroupsPath(), Sysctls: editFromAPI(l.GetSysctl()),
		Seccomp: seccompFromAPI(l.GetSeccompPolicy()), RDT: rdtFromAPI(l.GetRdt()),
	}
	for _, e := range n.GetEnv() {
		if name, removed := e.IsMarkedForRemoval(); removed {
			a.RemoveEnv = append(a.RemoveEnv, name)
			continue
		}
		a.Env = append(a.Env, pod.Var{Name: e.GetKey(), Value: e.GetValue()})
	}
	for _, m := range n.GetMounts() {
		if path, removed := m.IsMarkedForRemoval(); removed {
			a.RemoveMounts = append(a.RemoveMounts, path)
			continue
		}
		a.Mounts = append(a.Mounts, pod.MountPoint{Destination: m.GetDestination(), Type: m.GetType(), Source: m.GetSource(), Options: m.GetOptions()})
	}
	for _, r := range n.GetRlimits() {
		a.Rlimits = append(a.Rlimits, pod.Rlimit{Type: r.GetType(), Hard: r.GetHard(), Soft: r.GetSoft()})
	}
	for _, d := range n.GetCDIDevices() {
		a.CDIDevices = append(a.CDIDevices, d.GetName())
	}
	devicesFromAPI(l.GetDevices(), a)
	processFromAPI(l, a)
	namesFromAPI(l, a)
	if r := resourcesFromAPI(l.GetResources()); !reflect.ValueOf(r).IsZero() {
		a.Resources = &r
	}
	if len(a.Fields()) == 0 {
		return nil
	}
	return a
}

// editFromAPI separates what is marked for removal.
func editFromAPI(values map[string]string) pod.Edit {
	var e pod.Edit
	for key, value := range values {
		if name, removed := api.IsMarkedForRemoval(key); removed {
			e.Remove = append(e.Remove, name)
			continue
		}
		if e.Set == nil {
			e.Set = make(map[string]string)
		}
		e.Set[key] = value
	}
	slices.Sort(e.Remove)
	return e
}

func hooksFromAPI(h *api.Hooks) pod.Hooks {
	convert := func(hooks []*api.Hook) []pod.Hook {
		var all []pod.Hook
		for _, hook := range hooks {
			all = append(all, pod.Hook{Path: hook.GetPath(), Args: hook.GetArgs(), Env: hook.GetEnv(), Timeout: hook.GetTimeout().Get()})
		}
		return all
	}
	return pod.Hooks{
		Prestart: convert(h.GetPrestart()), CreateRuntime: convert(h.GetCreateRuntime()), CreateContainer: convert(h.GetCreateContainer()),
		StartContainer: convert(h.GetStartContainer()), Poststart: convert(h.GetPoststart()), Poststop: convert(h.GetPoststop()),
	}
}

func devicesFromAPI(devices []*api.LinuxDevice, a *pod.Adjustment) {
	for _, d := range devices {
		if path, removed := d.IsMarkedForRemoval(); removed {
			a.RemoveDevices = append(a.RemoveDevices, path)
			continue
		}
		n := pod.DeviceNode{
			Path: d.GetPath(), Type: d.GetType(), Major: d.GetMajor(), Minor: d.GetMinor(), UID: d.GetUid().Get(), GID: d.GetGid().Get(),
		}
		if m := d.GetFileMode(); m != nil {
			mode := m.GetValue()
			n.Mode = &mode
		}
		a.Devices = append(a.Devices, n)
	}
}

func processFromAPI(l *api.LinuxContainerAdjustment, a *pod.Adjustment) {
	if o := l.GetOomScoreAdj(); o != nil {
		score := o.GetValue()
		a.OOMScoreAdj = &score
	}
	if p := l.GetIoPriority(); p != nil {
		a.IOPriority = &pod.IOPriority{Class: string(p.GetClass().ToOCI()), Priority: int(p.GetPriority())}
	}
	if s := l.GetScheduler(); s != nil {
		a.Scheduler = &pod.Scheduler{
			Policy: string(s.GetPolicy().ToOCI()), Nice: s.GetNice(), Priority: s.GetPriority(),
			Runtime: s.GetRuntime(), Deadline: s.GetDeadline(), Period: s.GetPeriod(),
		}
		for _, f := range s.GetFlags() {
			a.Scheduler.Flags = append(a.Scheduler.Flags, f.String())
		}
	}
	if m := l.GetMemoryPolicy(); m != nil {
		a.MemoryPolicy = &pod.MemoryPolicy{Mode: m.GetMode().String(), Nodes: m.GetNodes()}
		for _, f := range m.GetFlags() {
			a.MemoryPolicy.Flags = append(a.MemoryPolicy.Flags, f.String())
		}
	}
}

// namesFromAPI takes over namespaces and network devices.
func namesFromAPI(l *api.LinuxContainerAdjustment, a *pod.Adjustment) {
	namespaces := make(map[string]string)
	for _, n := range l.GetNamespaces() {
		namespaces[n.GetType()] = n.GetPath()
	}
	a.Namespaces = editFromAPI(namespaces)
	devices := make(map[string]string)
	for name, d := range l.GetNetDevices() {
		devices[name] = d.GetName()
	}
	a.NetDevices = editFromAPI(devices)
}

func seccompFromAPI(n *api.LinuxSeccomp) *pod.SeccompProgram {
	if n == nil {
		return nil
	}
	p := &pod.SeccompProgram{
		DefaultAction: n.GetDefaultAction(), DefaultErrno: n.GetDefaultErrno().Get(), Architectures: n.GetArchitectures(),
		Flags: n.GetFlags(), ListenerPath: n.GetListenerPath(), ListenerMetadata: n.GetListenerMetadata(),
	}
	for _, s := range n.GetSyscalls() {
		rule := pod.SeccompRule{Names: s.GetNames(), Action: s.GetAction(), Errno: s.GetErrnoRet().Get()}
		for _, arg := range s.GetArgs() {
			rule.Args = append(rule.Args, pod.SeccompArg{Index: arg.GetIndex(), Value: arg.GetValue(), ValueTwo: arg.GetValueTwo(), Op: arg.GetOp()})
		}
		p.Syscalls = append(p.Syscalls, rule)
	}
	return p
}

// rdtFromAPI is nil for the empty one that the library always makes.
func rdtFromAPI(n *api.LinuxRdt) *pod.RDT {
	r := &pod.RDT{Remove: n.GetRemove(), ClosID: n.GetClosId().Get(), Monitoring: n.GetEnableMonitoring().Get()}
	if s := n.GetSchemata(); s != nil {
		schemata := s.GetValue()
		r.Schemata = &schemata
	}
	if *r == (pod.RDT{}) {
		return nil
	}
	return r
}
