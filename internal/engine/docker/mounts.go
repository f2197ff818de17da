package docker

import (
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// mount sets the client's mounts and, where it has none of its own there, the pod's files below /etc.
func (n *node) mount(host *container.HostConfig, req *engine.Create) error {
	wanted := lastOf(req.Spec.Mounts)
	for i := range wanted {
		m := &wanted[i]
		if m.SELinuxRelabel && n.selinux && m.Image == "" {
			bind, err := relabelled(m)
			if err != nil {
				return err
			}
			host.Binds = append(host.Binds, bind)
			continue
		}
		one, err := n.mountOf(m)
		if err != nil {
			return err
		}
		host.Mounts = append(host.Mounts, one)
	}
	for _, f := range []struct{ source, target string }{
		{req.Files.ResolvConf, "/etc/resolv.conf"}, {req.Files.Hosts, "/etc/hosts"}, {req.Files.Hostname, "/etc/hostname"},
	} {
		own := slices.ContainsFunc(wanted, func(m pod.Mount) bool { return path.Clean(m.ContainerPath) == f.target })
		if own || f.source == "" {
			continue
		}
		m := n.bind(f.source, f.target, req.Spec.Security.ReadOnlyRootfs)
		host.Mounts = append(host.Mounts, m)
	}
	return nil
}

// lastOf keeps the last of several mounts at one place: Docker refuses two.
func lastOf(mounts []pod.Mount) []pod.Mount {
	var kept []pod.Mount
	for i := range mounts {
		later := slices.ContainsFunc(mounts[i+1:], func(m pod.Mount) bool {
			return path.Clean(m.ContainerPath) == path.Clean(mounts[i].ContainerPath)
		})
		if !later {
			kept = append(kept, mounts[i])
		}
	}
	return kept
}

// mountOf is one mount as Docker has it, or the field that it cannot have.
func (n *node) mountOf(m *pod.Mount) (mount.Mount, error) {
	if err := refuseMount(m); err != nil {
		return mount.Mount{}, err
	}
	if m.Image != "" {
		return n.imageMount(m)
	}
	out := n.bind(m.HostPath, m.ContainerPath, m.ReadOnly)
	if m.Propagation != "" && m.Propagation != pod.PropagationPrivate {
		out.BindOptions.Propagation = mount.Propagation(m.Propagation)
	}
	if m.RecursiveReadOnly {
		if !n.recursiveReadOnly() {
			return out, refused("recursive_read_only", "Docker "+n.info.ServerVersion+" has no such mounts; 25.0 has")
		}
		out.BindOptions.ReadOnlyNonRecursive, out.BindOptions.ReadOnlyForceRecursive = false, true
	}
	return out, nil
}

func refuseMount(m *pod.Mount) error {
	if len(m.Options) > 0 {
		return refused("mount_options", "Docker's mounts take no "+strings.Join(m.Options, ","))
	}
	if len(m.UIDs) > 0 {
		return refused("uidMappings", "Docker's mounts map no ids")
	}
	if len(m.GIDs) > 0 {
		return refused("gidMappings", "Docker's mounts map no ids")
	}
	return nil
}

// bind is a mount of the node's file or directory. Since API 1.44 read-only means all below, unless
// it is said that it does not.
func (n *node) bind(source, target string, readOnly bool) mount.Mount {
	return mount.Mount{
		Type: mount.TypeBind, Source: source, Target: target, ReadOnly: readOnly,
		BindOptions: &mount.BindOptions{
			Propagation: mount.PropagationRPrivate, ReadOnlyNonRecursive: readOnly && n.recursiveReadOnly(),
		},
	}
}

func (n *node) recursiveReadOnly() bool { return n.speaks("1.44") }

// imageMount mounts an image of Docker's own store.
func (n *node) imageMount(m *pod.Mount) (mount.Mount, error) {
	if !n.speaks("1.48") {
		return mount.Mount{}, refused("mounts.image", "Docker "+n.info.ServerVersion+" mounts no images; 28.0 does")
	}
	out := mount.Mount{Type: mount.TypeImage, Source: m.Image, Target: m.ContainerPath}
	if m.ImageSubPath != "" {
		out.ImageOptions = &mount.ImageOptions{Subpath: m.ImageSubPath}
	}
	return out, nil
}

// relabelled is a mount in the form that alone can have its files relabelled for SELinux.
func relabelled(m *pod.Mount) (string, error) {
	if err := refuseMount(m); err != nil {
		return "", err
	}
	if m.RecursiveReadOnly {
		return "", refused("recursive_read_only", "Docker has it not together with selinux_relabel")
	}
	if strings.Contains(m.HostPath+m.ContainerPath, ":") {
		return "", refused("selinux_relabel", "Docker has it not for paths with a colon")
	}
	propagation, access := string(m.Propagation), "rw"
	if m.Propagation == "" || m.Propagation == pod.PropagationPrivate {
		propagation = "rprivate"
	}
	if m.ReadOnly {
		access = "ro"
	}
	return m.HostPath + ":" + m.ContainerPath + ":" + access + ",Z," + propagation, nil
}
