package ocispec

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/pod"
)

// mounts returns the mounts in the order in which they are made, parents first, and the propagation
// that the root needs so that those of the client can work.
func mounts(r *Request) (all []specs.Mount, rootPropagation string, err error) {
	var wanted []specs.Mount
	for i := range r.Mounts {
		m, err := clientMount(&r.Mounts[i], &r.Node)
		if err != nil {
			return nil, "", err
		}
		wanted = append(wanted, m)
		rootPropagation = stronger(rootPropagation, r.Mounts[i].Propagation)
	}
	wanted = last(wanted, func(m specs.Mount) string { return m.Destination })
	for _, m := range slices.Concat(systemMounts(r), sandboxMounts(r)) {
		if !replaced(m.Destination, wanted) {
			all = append(all, m)
		}
	}
	all = append(all, wanted...)
	slices.SortStableFunc(all, func(a, b specs.Mount) int {
		return cmp.Compare(depth(a.Destination), depth(b.Destination))
	})
	return all, rootPropagation, nil
}

func depth(dir string) int {
	if dir == "/" {
		return 0
	}
	return strings.Count(dir, "/")
}

// replaced says whether the client mounts dir itself, or a tree of the node's in which it lies.
func replaced(dir string, wanted []specs.Mount) bool {
	return slices.ContainsFunc(wanted, func(m specs.Mount) bool {
		return m.Destination == dir || (m.Destination == "/dev" || m.Destination == "/sys") && strings.HasPrefix(dir, m.Destination+"/")
	})
}

// systemMounts are the kernel's file systems, with the options that containerd and CRI-O give them.
func systemMounts(r *Request) []specs.Mount {
	access := "ro"
	if r.Container.Security.Privileged {
		access = "rw"
	}
	fs := func(kind, dir string, options ...string) specs.Mount {
		return specs.Mount{Type: kind, Source: kind, Destination: dir, Options: options}
	}
	return []specs.Mount{
		fs("proc", "/proc", "nosuid", "noexec", "nodev"),
		fs("tmpfs", "/dev", "nosuid", "strictatime", "mode=755", "size=65536k"),
		fs("devpts", "/dev/pts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
		fs("mqueue", "/dev/mqueue", "nosuid", "noexec", "nodev"),
		fs("sysfs", "/sys", "nosuid", "noexec", "nodev", access),
		fs("cgroup", "/sys/fs/cgroup", "nosuid", "noexec", "nodev", "relatime", access),
	}
}

func sandboxMounts(r *Request) []specs.Mount {
	access := "rw"
	if r.Container.Security.ReadOnlyRootfs {
		access = "ro"
	}
	var all []specs.Mount
	for _, f := range []struct{ source, dir, access string }{
		{r.Files.Shm, "/dev/shm", "rw"},
		{r.Files.ResolvConf, "/etc/resolv.conf", access},
		{r.Files.Hosts, "/etc/hosts", access},
		{r.Files.Hostname, "/etc/hostname", access},
	} {
		if f.source != "" {
			all = append(all, specs.Mount{
				Type: "bind", Source: f.source, Destination: f.dir,
				Options: []string{"rbind", "rprivate", f.access},
			})
		}
	}
	return all
}

func clientMount(m *pod.Mount, node *Node) (specs.Mount, error) {
	none := specs.Mount{}
	if m.Image != "" {
		return none, fmt.Errorf("mount %s: image: %w", m.ContainerPath, errdefs.ErrNotImplemented)
	}
	if len(m.UIDs) > 0 || len(m.GIDs) > 0 {
		return none, fmt.Errorf("mount %s: uidMappings: %w", m.ContainerPath, errdefs.ErrNotImplemented)
	}
	if m.ContainerPath == "" {
		return none, fmt.Errorf("mount of %s: container_path is empty: %w", m.HostPath, errdefs.ErrInvalidArgument)
	}
	propagation := string(m.Propagation)
	if m.Propagation == "" || m.Propagation == pod.PropagationPrivate {
		propagation = "rprivate"
	}
	access := "rw"
	if m.ReadOnly {
		access = "ro"
	}
	if m.RecursiveReadOnly {
		if !m.ReadOnly || propagation != "rprivate" {
			return none, fmt.Errorf("mount %s: recursive_read_only needs readonly and private propagation: %w",
				m.ContainerPath, errdefs.ErrInvalidArgument)
		}
		if !node.RecursiveReadOnly {
			return none, fmt.Errorf("mount %s: recursive_read_only: the OCI runtime has no such mounts: %w",
				m.ContainerPath, errdefs.ErrInvalidArgument)
		}
		access = "rro"
	}
	extra, err := mountOptions(m)
	if err != nil {
		return none, err
	}
	return specs.Mount{
		Type: "bind", Source: m.HostPath, Destination: path.Join("/", m.ContainerPath),
		Options: append([]string{"rbind", propagation, access}, extra...),
	}, nil
}

// mountOptions lets through what the CRI gives as examples, and their opposites.
func mountOptions(m *pod.Mount) ([]string, error) {
	known := []string{"noexec", "nodev", "nosuid", "exec", "dev", "suid", "noatime", "nodiratime", "relatime", "strictatime"}
	for _, o := range m.Options {
		if !slices.Contains(known, o) {
			return nil, fmt.Errorf("mount %s: mount_options: %q: %w", m.ContainerPath, o, errdefs.ErrInvalidArgument)
		}
	}
	return m.Options, nil
}

// stronger returns the propagation that serves both.
func stronger(have string, want pod.Propagation) string {
	switch {
	case have == string(pod.PropagationBidirectional), want == pod.PropagationBidirectional:
		return string(pod.PropagationBidirectional)
	case want == pod.PropagationHostToContainer:
		return string(want)
	}
	return have
}
