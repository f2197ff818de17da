package ocispec

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/pod"
)

// seccompProfile returns the profile for s, whose capabilities are set: the default one allows what
// the capabilities are for. A privileged container is never confined.
func seccompProfile(r *Request, s *specs.Spec) (*specs.LinuxSeccomp, error) {
	p := r.Container.Security.Seccomp
	if p == nil || p.Kind == pod.ProfileUnconfined || r.Container.Security.Privileged {
		return nil, nil
	}
	switch p.Kind {
	case pod.ProfileRuntimeDefault:
		return seccomp.DefaultProfile(s), nil
	case pod.ProfileLocalhost:
		return localProfile(p.Ref)
	}
	return nil, fmt.Errorf("seccomp profile kind %q: %w", p.Kind, errdefs.ErrInvalidArgument)
}

// localProfile reads a profile in OCI form from a file of the node.
func localProfile(name string) (*specs.LinuxSeccomp, error) {
	if !filepath.IsAbs(name) {
		return nil, fmt.Errorf("seccomp profile %q is not an absolute path: %w", name, errdefs.ErrInvalidArgument)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	profile := new(specs.LinuxSeccomp)
	if err := json.Unmarshal(data, profile); err != nil {
		return nil, fmt.Errorf("seccomp profile %s: %w: %w", name, errdefs.ErrInvalidArgument, err)
	}
	return profile, nil
}
