package ocispec

import (
	"cmp"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/pod"
)

// Adjust changes s as plugins want it. What pod.Adjustment.Fold puts into a container's spec, and the
// cgroups path, are not its to change. What the node or its OCI runtime would not do, or would ignore,
// is refused, naming the field.
func Adjust(s *specs.Spec, a *pod.Adjustment, node *Node) error {
	if a == nil {
		return nil
	}
	if err := refuseAdjustment(a, node); err != nil {
		return err
	}
	s.Annotations = a.Annotations.Apply(s.Annotations)
	s.Process.Env = slices.DeleteFunc(s.Process.Env, func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.Contains(a.RemoveEnv, name)
	})
	adjustMounts(s, a)
	adjustHooks(s, &a.Hooks)
	adjustDevices(s, a)
	adjustProcess(s.Process, a)
	adjustLinux(s.Linux, a)
	return nil
}

// refuseAdjustment knows what older runtimes ignore: they are told by the highest version of the OCI
// specification that they accept (its ChangeLog).
func refuseAdjustment(a *pod.Adjustment, node *Node) error {
	for _, f := range []struct {
		name  string
		wants bool
		minor int
	}{
		{"linux.io_priority", a.IOPriority != nil, 1},
		{"linux.scheduler", a.Scheduler != nil, 1},
		{"linux.net_devices", !a.NetDevices.Empty(), 3},
		{"linux.memory_policy", a.MemoryPolicy != nil, 3},
		{"linux.rdt.schemata", a.RDT != nil && a.RDT.Schemata != nil, 3},
		{"linux.rdt.enable_monitoring", a.RDT != nil && a.RDT.Monitoring != nil, 3},
	} {
		if f.wants && !accepts(node.OCIVersion, f.minor) {
			return fmt.Errorf("NRI adjustment %s: the OCI runtime knows specification %s, and this is of 1.%d: %w",
				f.name, node.OCIVersion, f.minor, errdefs.ErrNotImplemented)
		}
	}
	for _, m := range a.Mounts {
		if !path.IsAbs(m.Destination) {
			return fmt.Errorf("NRI adjustment mounts: %q is not an absolute path: %w", m.Destination, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// Relabel is an option that NRI has beside those of mount(8): the source's files get the container's SELinux label,
// which is the engine's to do.
const Relabel = "relabel"

// accepts says whether version, such as 1.0.2, is 1.minor or later.
func accepts(version string, minor int) bool {
	var major, have int
	_, _ = fmt.Sscanf(version, "%d.%d", &major, &have)
	return major > 1 || major == 1 && have >= minor
}

func adjustMounts(s *specs.Spec, a *pod.Adjustment) {
	s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool {
		return slices.Contains(a.RemoveMounts, m.Destination) ||
			slices.ContainsFunc(a.Mounts, func(n pod.MountPoint) bool { return n.Destination == m.Destination })
	})
	for _, m := range a.Mounts {
		options := slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == Relabel })
		s.Mounts = append(s.Mounts, specs.Mount{Destination: m.Destination, Type: m.Type, Source: m.Source, Options: options})
		for _, p := range []pod.Propagation{pod.PropagationHostToContainer, pod.PropagationBidirectional} {
			if slices.Contains(options, string(p)) {
				s.Linux.RootfsPropagation = stronger(s.Linux.RootfsPropagation, p)
			}
		}
	}
	slices.SortStableFunc(s.Mounts, func(a, b specs.Mount) int {
		return cmp.Compare(depth(a.Destination), depth(b.Destination))
	})
}

func adjustHooks(s *specs.Spec, h *pod.Hooks) {
	if h.Empty() {
		return
	}
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	add := func(to *[]specs.Hook, hooks []pod.Hook) {
		for _, hook := range hooks {
			*to = append(*to, specs.Hook(hook))
		}
	}
	add(&s.Hooks.Prestart, h.Prestart) //nolint:staticcheck // deprecated, and still what plugins ask for
	add(&s.Hooks.CreateRuntime, h.CreateRuntime)
	add(&s.Hooks.CreateContainer, h.CreateContainer)
	add(&s.Hooks.StartContainer, h.StartContainer)
	add(&s.Hooks.Poststart, h.Poststart)
	add(&s.Hooks.Poststop, h.Poststop)
}

// adjustDevices lets the container use what it is given. What is taken away stays allowed, as for
// whatever else has its numbers, but there is no node of it.
func adjustDevices(s *specs.Spec, a *pod.Adjustment) {
	s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(d specs.LinuxDevice) bool {
		return slices.Contains(a.RemoveDevices, d.Path) ||
			slices.ContainsFunc(a.Devices, func(n pod.DeviceNode) bool { return n.Path == d.Path })
	})
	for _, d := range a.Devices {
		n := specs.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, UID: d.UID, GID: d.GID}
		if d.Mode != nil {
			mode := os.FileMode(*d.Mode)
			n.FileMode = &mode
		}
		s.Linux.Devices = append(s.Linux.Devices, n)
		access := "rw"
		switch d.Type {
		case "b":
			access = "rwm"
		case "p":
			continue
		}
		major, minor := d.Major, d.Minor
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: strings.Replace(d.Type, "u", "c", 1), Major: &major, Minor: &minor, Access: access,
		})
	}
}

func adjustProcess(p *specs.Process, a *pod.Adjustment) {
	for _, l := range a.Rlimits {
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit(l))
	}
	p.Rlimits = last(p.Rlimits, func(l specs.POSIXRlimit) string { return l.Type })
	if prio := a.IOPriority; prio != nil {
		p.IOPriority = nil
		if prio.Class != "" {
			p.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPriorityClass(prio.Class), Priority: prio.Priority}
		}
	}
	if sched := a.Scheduler; sched != nil {
		p.Scheduler = nil
		if sched.Policy != "" {
			p.Scheduler = &specs.Scheduler{
				Policy: specs.LinuxSchedulerPolicy(sched.Policy), Nice: sched.Nice, Priority: sched.Priority,
				Flags: words[specs.LinuxSchedulerFlag](sched.Flags), Runtime: sched.Runtime, Deadline: sched.Deadline, Period: sched.Period,
			}
		}
	}
}

func adjustLinux(l *specs.Linux, a *pod.Adjustment) {
	l.Namespaces = slices.DeleteFunc(l.Namespaces, func(n specs.LinuxNamespace) bool {
		_, set := a.Namespaces.Set[string(n.Type)]
		return set || slices.Contains(a.Namespaces.Remove, string(n.Type))
	})
	for kind, joined := range a.Namespaces.Set {
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(kind), Path: joined})
	}
	if !a.Sysctls.Empty() {
		l.Sysctl = a.Sysctls.Apply(l.Sysctl)
	}
	for _, name := range a.NetDevices.Remove {
		delete(l.NetDevices, name)
	}
	for name, inside := range a.NetDevices.Set {
		if l.NetDevices == nil {
			l.NetDevices = make(map[string]specs.LinuxNetDevice)
		}
		l.NetDevices[name] = specs.LinuxNetDevice{Name: inside}
	}
	if a.Seccomp != nil {
		l.Seccomp = seccompProgram(a.Seccomp)
	}
	if m := a.MemoryPolicy; m != nil {
		l.MemoryPolicy = &specs.LinuxMemoryPolicy{
			Mode: specs.MemoryPolicyModeType(m.Mode), Nodes: m.Nodes, Flags: words[specs.MemoryPolicyFlagType](m.Flags),
		}
	}
	adjustRDT(l, a.RDT)
}

func adjustRDT(l *specs.Linux, r *pod.RDT) {
	if r == nil {
		return
	}
	if r.Remove {
		l.IntelRdt = nil
	}
	if r.ClosID == nil && r.Schemata == nil && r.Monitoring == nil {
		return
	}
	if l.IntelRdt == nil {
		l.IntelRdt = &specs.LinuxIntelRdt{}
	}
	if r.ClosID != nil {
		l.IntelRdt.ClosID = *r.ClosID
	}
	if r.Schemata != nil {
		l.IntelRdt.Schemata = *r.Schemata
	}
	if r.Monitoring != nil {
		l.IntelRdt.EnableMonitoring = *r.Monitoring
	}
}

func seccompProgram(p *pod.SeccompProgram) *specs.LinuxSeccomp {
	s := &specs.LinuxSeccomp{
		DefaultAction: specs.LinuxSeccompAction(p.DefaultAction), DefaultErrnoRet: errno(p.DefaultErrno),
		Architectures: words[specs.Arch](p.Architectures), Flags: words[specs.LinuxSeccompFlag](p.Flags),
		ListenerPath: p.ListenerPath, ListenerMetadata: p.ListenerMetadata,
	}
	for _, rule := range p.Syscalls {
		r := specs.LinuxSyscall{Names: rule.Names, Action: specs.LinuxSeccompAction(rule.Action), ErrnoRet: errno(rule.Errno)}
		for _, arg := range rule.Args {
			r.Args = append(r.Args, specs.LinuxSeccompArg{
				Index: uint(arg.Index), Value: arg.Value, ValueTwo: arg.ValueTwo, Op: specs.LinuxSeccompOperator(arg.Op),
			})
		}
		s.Syscalls = append(s.Syscalls, r)
	}
	return s
}

func errno(n *uint32) *uint {
	if n == nil {
		return nil
	}
	u := uint(*n)
	return &u
}

// words are strings that have a type of their own.
func words[T ~string](all []string) []T {
	var typed []T
	for _, w := range all {
		typed = append(typed, T(w))
	}
	return typed
}
