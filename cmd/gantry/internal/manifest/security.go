package manifest

import (
	"errors"
	"fmt"
	"slices"

	core "k8s.io/api/core/v1"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maskedPaths and readonlyPaths are what the kubelet gives containers with the default procMount.
var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
}

var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

func (b *builder) namespaces() *v1.NamespaceOption {
	n := &v1.NamespaceOption{Network: v1.NamespaceMode_POD, Ipc: v1.NamespaceMode_POD, Pid: v1.NamespaceMode_CONTAINER}
	if b.in.Spec.HostNetwork {
		n.Network = v1.NamespaceMode_NODE
	}
	if b.in.Spec.HostIPC {
		n.Ipc = v1.NamespaceMode_NODE
	}
	if deref(b.in.Spec.ShareProcessNamespace) {
		n.Pid = v1.NamespaceMode_POD
	}
	if b.in.Spec.HostPID {
		n.Pid = v1.NamespaceMode_NODE
	}
	if ids := b.ids(); ids != nil {
		n.UsernsOptions = &v1.UserNamespace{Mode: v1.NamespaceMode_POD, Uids: ids, Gids: ids}
	}
	return n
}

// idsOfAPod are how many ids a pod with a user namespace has, as with the kubelet.
const idsOfAPod = 65536

// ids are those of a pod with a user namespace of its own, nil without.
func (b *builder) ids() []*v1.IDMapping {
	if b.in.Spec.HostUsers == nil || *b.in.Spec.HostUsers {
		return nil
	}
	return []*v1.IDMapping{{HostId: b.opts.FirstID, Length: idsOfAPod}}
}

func (b *builder) podSecurity() error {
	spec := b.in.Spec
	if spec.HostPID && deref(spec.ShareProcessNamespace) {
		return errors.New("hostPID and shareProcessNamespace exclude each other")
	}
	if b.ids() != nil && (spec.HostNetwork || spec.HostPID || spec.HostIPC) {
		return errors.New("hostUsers: false and hostNetwork, hostPID or hostIPC exclude each other")
	}
	sec := &v1.LinuxSandboxSecurityContext{NamespaceOptions: b.namespaces()}
	linux := &v1.LinuxPodSandboxConfig{SecurityContext: sec}
	b.out.Sandbox.Linux = linux
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		if c.SecurityContext != nil && deref(c.SecurityContext.Privileged) {
			sec.Privileged = true
		}
	}
	pod := spec.SecurityContext
	if pod == nil {
		return nil
	}
	for _, s := range pod.Sysctls {
		if linux.Sysctls == nil {
			linux.Sysctls = map[string]string{}
		}
		linux.Sysctls[s.Name] = s.Value
	}
	sec.RunAsUser = int64Value(pod.RunAsUser)
	sec.RunAsGroup = int64Value(pod.RunAsGroup)
	sec.SupplementalGroups = b.groups()
	sec.SupplementalGroupsPolicy = groupsPolicy(pod)
	sec.SelinuxOptions = selinux(pod.SELinuxOptions)
	profile, err := seccomp(pod.SeccompProfile)
	if err != nil {
		return err
	}
	sec.Seccomp = profile
	sec.Apparmor, err = apparmor(pod.AppArmorProfile)
	return err
}

// groups are the supplemental groups of every container: fsGroup is one of them.
func (b *builder) groups() []int64 {
	pod := b.in.Spec.SecurityContext
	if pod == nil {
		return nil
	}
	groups := slices.Clone(pod.SupplementalGroups)
	if pod.FSGroup != nil && !slices.Contains(groups, *pod.FSGroup) {
		groups = append(groups, *pod.FSGroup)
	}
	return groups
}

func groupsPolicy(pod *core.PodSecurityContext) v1.SupplementalGroupsPolicy {
	if deref(pod.SupplementalGroupsPolicy) == core.SupplementalGroupsPolicyStrict {
		return v1.SupplementalGroupsPolicy_Strict
	}
	return v1.SupplementalGroupsPolicy_Merge
}

// containerSecurity merges the pod's security context under the container's.
func (b *builder) containerSecurity(c *core.Container, to *Container) (*v1.LinuxContainerSecurityContext, error) {
	own, pod := c.SecurityContext, b.in.Spec.SecurityContext
	if own == nil {
		own = &core.SecurityContext{}
	}
	if pod == nil {
		pod = &core.PodSecurityContext{}
	}
	sec := &v1.LinuxContainerSecurityContext{
		Privileged:               deref(own.Privileged),
		ReadonlyRootfs:           deref(own.ReadOnlyRootFilesystem),
		NoNewPrivs:               own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation,
		NamespaceOptions:         b.namespaces(),
		RunAsUser:                int64Value(first(own.RunAsUser, pod.RunAsUser)),
		RunAsGroup:               int64Value(first(own.RunAsGroup, pod.RunAsGroup)),
		SupplementalGroups:       b.groups(),
		SupplementalGroupsPolicy: groupsPolicy(pod),
		SelinuxOptions:           selinux(first(own.SELinuxOptions, pod.SELinuxOptions)),
	}
	if own.Capabilities != nil {
		sec.Capabilities = &v1.Capability{AddCapabilities: strs(own.Capabilities.Add), DropCapabilities: strs(own.Capabilities.Drop)}
	}
	if !sec.Privileged && deref(own.ProcMount) != core.UnmaskedProcMount {
		sec.MaskedPaths, sec.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	if sec.Privileged && own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation {
		return nil, errors.New("privileged and allowPrivilegeEscalation: false exclude each other")
	}
	if deref(first(own.RunAsNonRoot, pod.RunAsNonRoot)) {
		user := first(own.RunAsUser, pod.RunAsUser)
		if user != nil && *user == 0 {
			return nil, errors.New("runAsNonRoot and runAsUser: 0 exclude each other")
		}
		to.NonRoot = user == nil
	}
	var err error
	if sec.Seccomp, err = seccomp(first(own.SeccompProfile, pod.SeccompProfile)); err != nil {
		return nil, err
	}
	sec.Apparmor, err = apparmor(first(own.AppArmorProfile, pod.AppArmorProfile))
	return sec, err
}

func seccomp(p *core.SeccompProfile) (*v1.SecurityProfile, error) {
	if p == nil {
		return nil, nil
	}
	return profile("seccompProfile", string(p.Type), deref(p.LocalhostProfile))
}

func apparmor(p *core.AppArmorProfile) (*v1.SecurityProfile, error) {
	if p == nil {
		return nil, nil
	}
	return profile("appArmorProfile", string(p.Type), deref(p.LocalhostProfile))
}

func profile(field, kind, ref string) (*v1.SecurityProfile, error) {
	switch kind {
	case "RuntimeDefault":
		return &v1.SecurityProfile{ProfileType: v1.SecurityProfile_RuntimeDefault}, nil
	case "Unconfined":
		return &v1.SecurityProfile{ProfileType: v1.SecurityProfile_Unconfined}, nil
	case "Localhost":
		if ref == "" {
			return nil, fmt.Errorf("%s: localhostProfile is missing", field)
		}
		return &v1.SecurityProfile{ProfileType: v1.SecurityProfile_Localhost, LocalhostRef: ref}, nil
	}
	return nil, fmt.Errorf("%s: type %q is not RuntimeDefault, Unconfined or Localhost", field, kind)
}

func selinux(o *core.SELinuxOptions) *v1.SELinuxOption {
	if o == nil {
		return nil
	}
	return &v1.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

func int64Value(p *int64) *v1.Int64Value {
	if p == nil {
		return nil
	}
	return &v1.Int64Value{Value: *p}
}

func first[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

func strs[S ~string](in []S) []string {
	out := make([]string, 0, len(in))
	for _, s := range in {
		out = append(out, string(s))
	}
	return out
}
