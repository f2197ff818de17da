package docker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// confine sets what bounds a container's process beside its capabilities.
func (n *node) confine(host *container.HostConfig, req *engine.Create) error {
	s := &req.Spec.Security
	if len(s.AddAmbientCaps) > 0 {
		return refused("add_ambient_capabilities", "Docker has none")
	}
	for _, gid := range s.SupplementalGroups {
		host.GroupAdd = append(host.GroupAdd, strconv.FormatInt(gid, 10))
	}
	// Nil would be Docker's own lists.
	host.MaskedPaths, host.ReadonlyPaths = append([]string{}, s.MaskedPaths...), append([]string{}, s.ReadonlyPaths...)
	opts, err := n.securityOpts(s)
	host.SecurityOpt = opts
	return err
}

// securityOpts are Docker's: seccomp, AppArmor, SELinux and no_new_privs. A profile that the CRI does
// not name is none for seccomp, and Docker's own for AppArmor.
func (n *node) securityOpts(s *pod.Security) ([]string, error) {
	profile := s.Seccomp
	if s.Privileged { // Docker would confine it all the same
		profile = nil
	}
	seccomp, err := seccompOpt(profile)
	if err != nil {
		return nil, err
	}
	apparmor, err := n.apparmorOpt(s.AppArmor)
	if err != nil {
		return nil, err
	}
	opts := append(seccomp, apparmor...)
	labels, err := n.selinuxOpts(s)
	if err != nil {
		return nil, err
	}
	opts = append(opts, labels...)
	if s.NoNewPrivileges {
		opts = append(opts, "no-new-privileges")
	}
	return opts, nil
}

// sandboxSecurity is that of the pause container, which never needs more than Docker's defaults.
func (n *node) sandboxSecurity(s *pod.Security) ([]string, error) {
	labels, err := n.selinuxOpts(s)
	return append(labels, "no-new-privileges"), err
}

func seccompOpt(p *pod.Profile) ([]string, error) {
	if p == nil || p.Kind == pod.ProfileUnconfined {
		return []string{"seccomp=unconfined"}, nil
	}
	switch p.Kind {
	case pod.ProfileRuntimeDefault:
		return nil, nil
	case pod.ProfileLocalhost:
		profile, err := localProfile(p.Ref)
		return []string{"seccomp=" + profile}, err
	}
	return nil, fmt.Errorf("seccomp profile kind %q: %w", p.Kind, errdefs.ErrInvalidArgument)
}

// localProfile reads a profile of the node: Docker's API takes its content.
func localProfile(name string) (string, error) {
	if !filepath.IsAbs(name) {
		return "", fmt.Errorf("seccomp profile %q is not an absolute path: %w", name, errdefs.ErrInvalidArgument)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("seccomp profile: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	var line bytes.Buffer
	if err := json.Compact(&line, data); err != nil {
		return "", fmt.Errorf("seccomp profile %s: %w: %w", name, errdefs.ErrInvalidArgument, err)
	}
	return line.String(), nil
}

func (n *node) apparmorOpt(p *pod.Profile) ([]string, error) {
	switch {
	case p == nil || p.Kind == pod.ProfileRuntimeDefault:
		return nil, nil
	case p.Kind == pod.ProfileUnconfined:
		return []string{"apparmor=unconfined"}, nil
	case p.Kind == pod.ProfileLocalhost && n.apparmor:
		return []string{"apparmor=" + p.Ref}, nil
	case p.Kind == pod.ProfileLocalhost:
		return nil, fmt.Errorf("apparmor profile %q: docker has no AppArmor here: %w", p.Ref, errdefs.ErrInvalidArgument)
	}
	return nil, fmt.Errorf("apparmor profile kind %q: %w", p.Kind, errdefs.ErrInvalidArgument)
}

// selinuxOpts is nothing where the daemon does not label and the pod does not depend on it.
func (n *node) selinuxOpts(sec *pod.Security) ([]string, error) {
	s := sec.SELinux
	switch {
	case !n.selinux && sec.DemandsSELinux():
		return nil, fmt.Errorf("selinux_options: docker labels nothing here (selinux-enabled): %w", errdefs.ErrFailedPrecondition)
	case s.Empty() || !n.selinux:
		return nil, nil
	}
	var opts []string
	for _, part := range []struct{ name, value string }{{"user", s.User}, {"role", s.Role}, {"type", s.Type}, {"level", s.Level}} {
		if part.value != "" {
			opts = append(opts, "label="+part.name+":"+part.value)
		}
	}
	return opts, nil
}
