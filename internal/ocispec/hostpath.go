package ocispec

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"

	"gantry/internal/pod"
)

// ResolveMounts checks the node's side of the mounts and returns them with links resolved. A source
// that does not exist, or lies on a mount that cannot propagate as asked, is
// errdefs.ErrInvalidArgument: the CRI leaves creating it to the client.
func ResolveMounts(mounts []pod.Mount) ([]pod.Mount, error) {
	resolved := slices.Clone(mounts)
	for i := range resolved {
		m := &resolved[i]
		if m.Image != "" {
			continue
		}
		if !filepath.IsAbs(m.HostPath) {
			return nil, fmt.Errorf("mount %s: host_path %q is not absolute: %w", m.ContainerPath, m.HostPath, errdefs.ErrInvalidArgument)
		}
		source, err := filepath.EvalSymlinks(m.HostPath)
		if err != nil {
			return nil, fmt.Errorf("mount %s: host_path %s: %w: %w", m.ContainerPath, m.HostPath, errdefs.ErrInvalidArgument, err)
		}
		m.HostPath = source
		if err := checkPropagation(m); err != nil {
			return nil, err
		}
	}
	return resolved, nil
}

// checkPropagation refuses what the kernel would do silently otherwise: a bind mount from a private
// mount receives and sends nothing.
func checkPropagation(m *pod.Mount) error {
	var accepted []string
	switch m.Propagation {
	case "", pod.PropagationPrivate:
		return nil
	case pod.PropagationHostToContainer:
		accepted = []string{"shared:", "master:"}
	case pod.PropagationBidirectional:
		accepted = []string{"shared:"}
	default:
		return fmt.Errorf("mount %s: propagation %q: %w", m.ContainerPath, m.Propagation, errdefs.ErrInvalidArgument)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(m.HostPath))
	if err != nil {
		return fmt.Errorf("mounts of the node: %w", err)
	}
	var under *mountinfo.Info
	for _, candidate := range mounts {
		// Of several mounts on one directory the last is the one that shows.
		if under == nil || len(candidate.Mountpoint) >= len(under.Mountpoint) {
			under = candidate
		}
	}
	if under != nil && slices.ContainsFunc(accepted, func(tag string) bool {
		return slices.ContainsFunc(strings.Fields(under.Optional), func(o string) bool { return strings.HasPrefix(o, tag) })
	}) {
		return nil
	}
	on := "nothing"
	if under != nil {
		on = under.Mountpoint
	}
	return fmt.Errorf("mount %s: propagation %s: %s is on the mount %s, which is private: %w",
		m.ContainerPath, m.Propagation, m.HostPath, on, errdefs.ErrInvalidArgument)
}
