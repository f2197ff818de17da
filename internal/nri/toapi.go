package nri

import (
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/containerd/nri/pkg/api"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// Plugins know sandboxes and containers by their keys: they are there before an engine has given an id.

func sandboxToAPI(sb *pod.Sandbox) *api.PodSandbox {
	s := &sb.Spec
	p := &api.PodSandbox{
		Id: string(s.Key), Name: s.Metadata.Name, Uid: s.Metadata.UID, Namespace: s.Metadata.Namespace,
		Labels: maps.Clone(s.Labels), Annotations: maps.Clone(s.Annotations), RuntimeHandler: s.Handler,
		Linux: &api.LinuxPodSandbox{
			PodOverhead: resourcesToAPI(s.Overhead), PodResources: resourcesToAPI(s.Resources), Resources: resourcesToAPI(s.Resources),
			CgroupParent: s.CgroupParent, CgroupsPath: sb.CgroupPath,
		},
	}
	if sb.NetNS != "" && sb.State != pod.SandboxNotReady {
		p.Linux.Namespaces = []*api.LinuxNamespace{{Type: "network", Path: sb.NetNS}}
	}
	if sb.Network != nil {
		p.Ips = slices.Clone(sb.Network.IPs)
	}
	return p
}

// containerToAPI shows a container as it is or, while it is being created, as it will be without
// further adjustment.
func containerToAPI(ev *pod.ContainerEvent) *api.Container {
	c, a := ev.Container, ev.Container.Adjustment
	if a == nil {
		a = &pod.Adjustment{}
	}
	resources := c.Spec.Resources
	spec, _ := a.Fold(&c.Spec)
	var image pod.Image
	if found := ev.Image(); found != nil {
		image = *found
	}
	n := &api.Container{
		Id: string(spec.Key), PodSandboxId: string(spec.Sandbox), Name: spec.Name, State: stateToAPI(c.State),
		Labels: maps.Clone(spec.Labels), Annotations: a.Annotations.Apply(spec.Annotations),
		Args: spec.CommandLine(&image.Config), Env: environment(spec, &image, a.RemoveEnv),
		Mounts: mountsToAPI(spec.Mounts, a), Hooks: hooksToAPI(&a.Hooks), Pid: pidToAPI(c.Pid),
		CreatedAt: nanoseconds(c.CreatedAt), StartedAt: nanoseconds(c.StartedAt), FinishedAt: nanoseconds(c.FinishedAt),
		ExitCode: c.ExitCode, StatusReason: c.Reason, StatusMessage: c.Message,
		User: userToAPI(c), Image: imageToAPI(spec, &image),
		Linux: linuxToAPI(ev.Sandbox, c, a),
	}
	n.Linux.Resources = resourcesToAPI(&resources) // with every update since
	n.Linux.OomScoreAdj = api.Int(int(resources.OOMScoreAdj))
	for _, name := range spec.CDIDevices {
		n.CDIDevices = append(n.CDIDevices, &api.CDIDevice{Name: name})
	}
	for _, l := range a.Rlimits {
		n.Rlimits = append(n.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
	}
	return n
}

func stateToAPI(s pod.ContainerState) api.ContainerState {
	switch s {
	case pod.ContainerCreating, pod.ContainerCreated:
		return api.ContainerState_CONTAINER_CREATED
	case pod.ContainerRunning:
		return api.ContainerState_CONTAINER_RUNNING
	case pod.ContainerExited, pod.ContainerRemoving:
		return api.ContainerState_CONTAINER_STOPPED
	}
	return api.ContainerState_CONTAINER_UNKNOWN
}

// environment is the image's and the client's; the last of a name wins.
func environment(spec *pod.ContainerSpec, image *pod.Image, removed []string) []string {
	var env []string
	add := func(name, entry string) {
		env = slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
		env = append(env, entry)
	}
	for _, entry := range image.Config.Env {
		if name, _, _ := strings.Cut(entry, "="); !slices.Contains(removed, name) {
			add(name, entry)
		}
	}
	for _, v := range spec.Env {
		add(v.Name, v.Name+"="+v.Value)
	}
	return env
}

// mountsToAPI shows the client's mounts. Those that every container has are not shown.
func mountsToAPI(mounts []pod.Mount, a *pod.Adjustment) []*api.Mount {
	var all []*api.Mount
	for _, m := range mounts {
		if slices.Contains(a.RemoveMounts, m.ContainerPath) {
			continue
		}
		n := &api.Mount{Destination: m.ContainerPath, Type: "bind", Source: m.HostPath, Options: []string{"rbind", "rprivate", "rw"}}
		if m.Propagation != "" && m.Propagation != pod.PropagationPrivate {
			n.Options[1] = string(m.Propagation)
		}
		switch {
		case m.RecursiveReadOnly:
			n.Options[2] = "rro"
		case m.ReadOnly:
			n.Options[2] = "ro"
		}
		if m.Image != "" {
			n.Type, n.Source = "image", m.Image
		}
		n.Options = append(n.Options, m.Options...)
		all = append(all, n)
	}
	for _, m := range a.Mounts {
		all = slices.DeleteFunc(all, func(other *api.Mount) bool { return other.Destination == m.Destination })
		all = append(all, &api.Mount{Destination: m.Destination, Type: m.Type, Source: m.Source, Options: slices.Clone(m.Options)})
	}
	return all
}

func hooksToAPI(h *pod.Hooks) *api.Hooks {
	convert := func(hooks []pod.Hook) []*api.Hook {
		var all []*api.Hook
		for _, hook := range hooks {
			all = append(all, &api.Hook{
				Path: hook.Path, Args: slices.Clone(hook.Args), Env: slices.Clone(hook.Env), Timeout: api.Int(hook.Timeout),
			})
		}
		return all
	}
	return &api.Hooks{
		Prestart: convert(h.Prestart), CreateRuntime: convert(h.CreateRuntime), CreateContainer: convert(h.CreateContainer),
		StartContainer: convert(h.StartContainer), Poststart: convert(h.Poststart), Poststop: convert(h.Poststop),
	}
}

func pidToAPI(pid int) uint32 {
	if pid < 0 || pid > math.MaxInt32 {
		return 0
	}
	return uint32(pid)
}

func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// userToAPI is who the process runs as, or what the client asked for while nobody knows.
func userToAPI(c *pod.Container) *api.User {
	id := func(n int64) uint32 { return uint32(max(0, min(n, math.MaxUint32))) } //nolint:gosec // it is in bounds
	u := &api.User{}
	switch {
	case c.User != nil:
		u.Uid, u.Gid = id(c.User.UID), id(c.User.GID)
		for _, g := range c.User.Groups {
			u.AdditionalGids = append(u.AdditionalGids, id(g))
		}
	case c.Spec.Security.RunAsUser != nil:
		u.Uid = id(*c.Spec.Security.RunAsUser)
		if g := c.Spec.Security.RunAsGroup; g != nil {
			u.Gid = id(*g)
		}
	}
	return u
}

func imageToAPI(spec *pod.ContainerSpec, image *pod.Image) *api.Image {
	n := &api.Image{Name: spec.ImageName}
	if strings.Contains(image.ID, ":") { // the digest of the image's configuration, where the store calls it so
		n.ConfigDigest = image.ID
	}
	for _, ref := range image.Digests {
		if _, digest, ok := strings.Cut(ref, "@"); ok {
			n.Digest = digest
			break
		}
	}
	return n
}

func linuxToAPI(sb *pod.Sandbox, c *pod.Container, a *pod.Adjustment) *api.LinuxContainer {
	l := &api.LinuxContainer{
		Namespaces: namespacesToAPI(sb, &c.Spec, a), Devices: devicesToAPI(c.Spec.Devices, a), CgroupsPath: c.CgroupPath,
		Sysctl: a.Sysctls.Apply(nil), NetDevices: make(map[string]*api.LinuxNetDevice), SeccompProfile: profileToAPI(c.Spec.Security.Seccomp),
		Rdt: rdtToAPI(a.RDT),
	}
	if a.CgroupsPath != "" {
		l.CgroupsPath = a.CgroupsPath
	}
	for name, inside := range a.NetDevices.Set {
		l.NetDevices[name] = &api.LinuxNetDevice{Name: inside}
	}
	if p := a.IOPriority; p != nil {
		l.IoPriority = &api.LinuxIOPriority{Class: api.IOPrioClass(api.IOPrioClass_value[p.Class]), Priority: int32(p.Priority)} //nolint:gosec // it came as one
	}
	if s := a.Scheduler; s != nil {
		l.Scheduler = &api.LinuxScheduler{
			Policy: api.LinuxSchedulerPolicy(api.LinuxSchedulerPolicy_value[s.Policy]), Nice: s.Nice, Priority: s.Priority,
			Runtime: s.Runtime, Deadline: s.Deadline, Period: s.Period,
		}
		for _, f := range s.Flags {
			l.Scheduler.Flags = append(l.Scheduler.Flags, api.LinuxSchedulerFlag(api.LinuxSchedulerFlag_value[f]))
		}
	}
	if a.Seccomp != nil {
		l.SeccompPolicy = seccompToAPI(a.Seccomp)
	}
	return l
}

func profileToAPI(p *pod.Profile) *api.SecurityProfile {
	switch {
	case p == nil || p.Kind == pod.ProfileUnconfined:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_UNCONFINED}
	case p.Kind == pod.ProfileLocalhost:
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_LOCALHOST, LocalhostRef: p.Ref}
	}
	return &api.SecurityProfile{ProfileType: api.SecurityProfile_RUNTIME_DEFAULT}
}

func rdtToAPI(r *pod.RDT) *api.LinuxRdt {
	if r == nil {
		return nil
	}
	n := &api.LinuxRdt{ClosId: api.String(r.ClosID), EnableMonitoring: api.Bool(r.Monitoring)}
	if r.Schemata != nil {
		n.Schemata = api.RepeatedString(*r.Schemata)
	}
	return n
}

// namespacesToAPI shows which namespaces the container has to itself or shares with its pod; a path is
// shown of those that others can join.
func namespacesToAPI(sb *pod.Sandbox, spec *pod.ContainerSpec, a *pod.Adjustment) []*api.LinuxNamespace {
	paths := map[string]string{"mount": ""}
	if !sb.Spec.HostNetwork() {
		paths["network"], paths["uts"] = sb.NetNS, ""
	}
	if sb.Spec.Namespaces.IPC != pod.NamespaceNode {
		paths["ipc"] = ""
	}
	if spec.Namespaces.PID != pod.NamespaceNode {
		paths["pid"] = ""
	}
	if sb.Spec.Namespaces.User != nil {
		paths["user"] = ""
	}
	var all []*api.LinuxNamespace
	paths = a.Namespaces.Apply(paths)
	for _, kind := range slices.Sorted(maps.Keys(paths)) {
		all = append(all, &api.LinuxNamespace{Type: kind, Path: paths[kind]})
	}
	return all
}

func devicesToAPI(devices []pod.Device, a *pod.Adjustment) []*api.LinuxDevice {
	var all []*api.LinuxDevice
	for _, d := range devices {
		path := d.ContainerPath
		if path == "" {
			path = d.HostPath
		}
		if slices.Contains(a.RemoveDevices, path) {
			continue
		}
		n := &api.LinuxDevice{Path: path}
		var st unix.Stat_t
		if unix.Stat(d.HostPath, &st) == nil {
			n.Type = map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b"}[st.Mode&unix.S_IFMT]
			n.Major, n.Minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
			n.Uid, n.Gid = api.UInt32(st.Uid), api.UInt32(st.Gid)
			n.FileMode = &api.OptionalFileMode{Value: st.Mode & 0o7777}
		}
		all = append(all, n)
	}
	for _, d := range a.Devices {
		n := &api.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, Uid: api.UInt32(d.UID), Gid: api.UInt32(d.GID)}
		if d.Mode != nil {
			n.FileMode = &api.OptionalFileMode{Value: *d.Mode}
		}
		all = append(all, n)
	}
	return all
}

func seccompToAPI(p *pod.SeccompProgram) *api.LinuxSeccomp {
	n := &api.LinuxSeccomp{
		DefaultAction: p.DefaultAction, DefaultErrno: api.UInt32(p.DefaultErrno), Architectures: slices.Clone(p.Architectures),
		Flags: slices.Clone(p.Flags), ListenerPath: p.ListenerPath, ListenerMetadata: p.ListenerMetadata,
	}
	for _, rule := range p.Syscalls {
		s := &api.LinuxSyscall{Names: slices.Clone(rule.Names), Action: rule.Action, ErrnoRet: api.UInt32(rule.Errno)}
		for _, arg := range rule.Args {
			s.Args = append(s.Args, &api.LinuxSeccompArg{Index: arg.Index, Value: arg.Value, ValueTwo: arg.ValueTwo, Op: arg.Op})
		}
		n.Syscalls = append(n.Syscalls, s)
	}
	return n
}
