package cri

import (
	"math"
	"path"
	"slices"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

func sandboxSecurity(field string, sc *runtime.LinuxSandboxSecurityContext) (pod.Security, error) {
	s := pod.Security{
		Privileged:         sc.GetPrivileged(),
		RunAsUser:          int64Pointer(sc.GetRunAsUser()),
		RunAsGroup:         int64Pointer(sc.GetRunAsGroup()),
		SupplementalGroups: slices.Clone(sc.GetSupplementalGroups()),
		ReadOnlyRootfs:     sc.GetReadonlyRootfs(),
		SELinux:            selinux(sc.GetSelinuxOptions()),
	}
	var err error
	if s.StrictGroups, err = strictGroups(field, sc.GetSupplementalGroupsPolicy()); err != nil {
		return s, err
	}
	if err = checkIdentity(field, &s); err != nil {
		return s, err
	}
	old := sc.GetSeccompProfilePath() //nolint:staticcheck // old clients still set it
	if s.Seccomp, err = seccomp(field, sc.GetSeccomp(), old); err != nil {
		return s, err
	}
	s.AppArmor, err = apparmor(field, sc.GetApparmor(), "")
	return s, err
}

func containerSecurity(field string, sc *runtime.LinuxContainerSecurityContext) (pod.Security, error) {
	s := pod.Security{
		Privileged:         sc.GetPrivileged(),
		RunAsUser:          int64Pointer(sc.GetRunAsUser()),
		RunAsGroup:         int64Pointer(sc.GetRunAsGroup()),
		RunAsUsername:      sc.GetRunAsUsername(),
		SupplementalGroups: slices.Clone(sc.GetSupplementalGroups()),
		ReadOnlyRootfs:     sc.GetReadonlyRootfs(),
		NoNewPrivileges:    sc.GetNoNewPrivs(),
		MaskedPaths:        slices.Clone(sc.GetMaskedPaths()),
		ReadonlyPaths:      slices.Clone(sc.GetReadonlyPaths()),
		SELinux:            selinux(sc.GetSelinuxOptions()),
	}
	var err error
	if s.StrictGroups, err = strictGroups(field, sc.GetSupplementalGroupsPolicy()); err != nil {
		return s, err
	}
	if err = checkIdentity(field, &s); err != nil {
		return s, err
	}
	if err = checkPaths(field, &s); err != nil {
		return s, err
	}
	if err = capabilities(field+".capabilities", sc.GetCapabilities(), &s); err != nil {
		return s, err
	}
	//nolint:staticcheck // old clients still set the deprecated fields
	oldSeccomp, oldAppArmor := sc.GetSeccompProfilePath(), sc.GetApparmorProfile()
	if s.Seccomp, err = seccomp(field, sc.GetSeccomp(), oldSeccomp); err != nil {
		return s, err
	}
	s.AppArmor, err = apparmor(field, sc.GetApparmor(), oldAppArmor)
	return s, err
}

func strictGroups(field string, p runtime.SupplementalGroupsPolicy) (bool, error) {
	switch p {
	case runtime.SupplementalGroupsPolicy_Merge:
		return false, nil
	case runtime.SupplementalGroupsPolicy_Strict:
		return true, nil
	}
	return false, invalid(field+".supplemental_groups_policy", "%d is neither Merge nor Strict", p)
}

// checkIdentity holds the CRI's rules: one way to name a user, and a group only beside a user.
func checkIdentity(field string, s *pod.Security) error {
	if s.RunAsUser != nil && s.RunAsUsername != "" {
		return invalid(field+".run_as_username", "cannot be set together with run_as_user")
	}
	if s.RunAsGroup != nil && s.RunAsUser == nil && s.RunAsUsername == "" {
		return invalid(field+".run_as_group", "needs run_as_user or run_as_username")
	}
	if err := checkLine(field+".run_as_username", s.RunAsUsername); err != nil {
		return err
	}
	if err := checkUnixID(field+".run_as_user", s.RunAsUser); err != nil {
		return err
	}
	if err := checkUnixID(field+".run_as_group", s.RunAsGroup); err != nil {
		return err
	}
	for _, g := range s.SupplementalGroups {
		if err := checkUnixID(field+".supplemental_groups", &g); err != nil {
			return err
		}
	}
	return nil
}

// checkUnixID knows that the kernel keeps 2^32-1 for "no id".
func checkUnixID(field string, id *int64) error {
	if id != nil && (*id < 0 || *id >= math.MaxUint32) {
		return invalid(field, "%d is not between 0 and %d", *id, uint32(math.MaxUint32-1))
	}
	return nil
}

func checkPaths(field string, s *pod.Security) error {
	for _, p := range s.MaskedPaths {
		if err := checkAbs(field+".masked_paths", p); err != nil {
			return err
		}
	}
	for _, p := range s.ReadonlyPaths {
		if err := checkAbs(field+".readonly_paths", p); err != nil {
			return err
		}
	}
	return nil
}

func capabilities(field string, c *runtime.Capability, s *pod.Security) (err error) {
	if s.AddCaps, err = capNames(field+".add_capabilities", c.GetAddCapabilities()); err != nil {
		return err
	}
	if s.DropCaps, err = capNames(field+".drop_capabilities", c.GetDropCapabilities()); err != nil {
		return err
	}
	s.AddAmbientCaps, err = capNames(field+".add_ambient_capabilities", c.GetAddAmbientCapabilities())
	return err
}

// capNames brings capabilities to upper case without "CAP_"; whether one exists, the engine knows.
func capNames(field string, list []string) ([]string, error) {
	var out []string
	for _, c := range list {
		name := strings.TrimPrefix(strings.ToUpper(c), "CAP_")
		if name == "" || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_") != "" {
			return nil, invalid(field, "%q is not a capability", c)
		}
		out = append(out, name)
	}
	return out, nil
}

func selinux(o *runtime.SELinuxOption) *pod.SELinux {
	if o == nil {
		return nil
	}
	return &pod.SELinux{User: o.GetUser(), Role: o.GetRole(), Type: o.GetType(), Level: o.GetLevel()}
}

// seccomp prefers the message; the deprecated string speaks only where the message is absent.
func seccomp(field string, p *runtime.SecurityProfile, old string) (*pod.Profile, error) {
	prof, err := profile(field+".seccomp", p)
	if p == nil && old != "" {
		prof, err = oldProfile(field+".seccomp_profile_path", old)
	}
	if err != nil || prof == nil {
		return nil, err
	}
	if prof.Kind == pod.ProfileLocalhost && !path.IsAbs(prof.Ref) {
		return nil, invalid(field+".seccomp.localhost_ref", "%q is not an absolute path", prof.Ref)
	}
	return prof, nil
}

func apparmor(field string, p *runtime.SecurityProfile, old string) (*pod.Profile, error) {
	if p == nil && old != "" {
		return oldProfile(field+".apparmor_profile", old)
	}
	return profile(field+".apparmor", p)
}

func profile(field string, p *runtime.SecurityProfile) (*pod.Profile, error) {
	if p == nil {
		return nil, nil
	}
	ref := p.GetLocalhostRef()
	if ref != "" && p.GetProfileType() != runtime.SecurityProfile_Localhost {
		return nil, invalid(field+".localhost_ref", "is only for profile_type Localhost")
	}
	switch p.GetProfileType() {
	case runtime.SecurityProfile_RuntimeDefault:
		return &pod.Profile{Kind: pod.ProfileRuntimeDefault}, nil
	case runtime.SecurityProfile_Unconfined:
		return &pod.Profile{Kind: pod.ProfileUnconfined}, nil
	case runtime.SecurityProfile_Localhost:
		// Clients that know the old strings keep their prefix; critest does.
		if ref = strings.TrimPrefix(ref, localPrefix); ref == "" {
			return nil, invalid(field+".localhost_ref", "must name a profile")
		}
		return &pod.Profile{Kind: pod.ProfileLocalhost, Ref: ref}, checkLine(field+".localhost_ref", ref)
	}
	return nil, invalid(field+".profile_type", "%d is not a profile type", p.GetProfileType())
}

// localPrefix is before the name of a local profile in the strings that oldProfile reads.
const localPrefix = "localhost/"

// oldProfile reads the strings that profiles were before the CRI had messages for them.
func oldProfile(field, s string) (*pod.Profile, error) {
	switch s {
	case "runtime/default", "docker/default":
		return &pod.Profile{Kind: pod.ProfileRuntimeDefault}, nil
	case "unconfined":
		return &pod.Profile{Kind: pod.ProfileUnconfined}, nil
	}
	ref, ok := strings.CutPrefix(s, localPrefix)
	if !ok || ref == "" {
		return nil, invalid(field, "%q is not runtime/default, unconfined or localhost/…", s)
	}
	return &pod.Profile{Kind: pod.ProfileLocalhost, Ref: ref}, checkLine(field, ref)
}
