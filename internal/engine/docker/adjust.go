package docker

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"gantry/internal/pod"
)

// adjust does what plugins want beyond what the spec could say, and refuses what Docker has no word for.
func (n *node) adjust(host *container.HostConfig, a *pod.Adjustment) error {
	can := []string{"rlimits", "mounts", "annotations"}
	for _, field := range a.Fields() {
		if !slices.Contains(can, field) {
			return refused("adjustment of "+field, "Docker's API has no word for it")
		}
	}
	for _, l := range a.Rlimits {
		host.Ulimits = append(host.Ulimits, ulimit(l))
	}
	if err := n.annotate(host, a.Annotations); err != nil {
		return err
	}
	if len(a.RemoveMounts) > 0 {
		host.Mounts = slices.DeleteFunc(host.Mounts, func(m mount.Mount) bool { return slices.Contains(a.RemoveMounts, m.Target) })
	}
	for i := range a.Mounts {
		m, err := n.pluginMount(&a.Mounts[i])
		if err != nil {
			return err
		}
		host.Mounts = append(slices.DeleteFunc(host.Mounts, func(old mount.Mount) bool { return old.Target == m.Target }), m)
	}
	return nil
}

func ulimit(l pod.Rlimit) *container.Ulimit {
	name := strings.ToLower(strings.TrimPrefix(l.Type, "RLIMIT_"))
	return &container.Ulimit{Name: name, Soft: int64(l.Soft), Hard: int64(l.Hard)}
}

// annotate gives the OCI runtime annotations.
func (n *node) annotate(host *container.HostConfig, e pod.Edit) error {
	if len(e.Set) == 0 {
		return nil
	}
	if !n.speaks("1.43") {
		return refused("adjustment of annotations", "Docker "+n.info.ServerVersion+" has none; 24.0 has")
	}
	host.Annotations = e.Apply(host.Annotations)
	return nil
}

// pluginMount is a mount in the words of an OCI runtime as far as Docker has them.
func (n *node) pluginMount(m *pod.MountPoint) (mount.Mount, error) {
	if m.Type == "tmpfs" && len(m.Options) == 0 {
		return mount.Mount{Type: mount.TypeTmpfs, Target: m.Destination}, nil
	}
	if m.Type != "bind" && !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind") {
		return mount.Mount{}, refused("adjustment of mounts", "Docker mounts no "+m.Type)
	}
	out := n.bind(m.Source, m.Destination, slices.Contains(m.Options, "ro"))
	for _, o := range m.Options {
		switch o {
		case "ro", "rw", "rbind":
		case "bind":
			out.BindOptions.NonRecursive = !slices.Contains(m.Options, "rbind")
		case "private", "rprivate", "slave", "rslave", "shared", "rshared":
			out.BindOptions.Propagation = mount.Propagation(o)
		default:
			return out, refused("adjustment of mounts", "Docker's mounts take no "+o)
		}
	}
	return out, nil
}
