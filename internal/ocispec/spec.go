// Package ocispec turns a container's nouns into an OCI runtime spec. Build is pure: what depends on
// the node, the root file system or the sandbox is found out before, by the caller or by the other
// functions here (FindUser, ResolveMounts, ResolveDevices, NodeFacts), and stands in the Request.
package ocispec

import (
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/pod"
)

// Request is everything Build needs.
type Request struct {
	Container *pod.ContainerSpec
	Sandbox   *pod.SandboxSpec
	Image     pod.ImageConfig
	// Rootfs is the absolute path of the mounted root file system.
	Rootfs string
	// CgroupsPath is the OCI cgroupsPath, in the form of the node's cgroup driver.
	CgroupsPath string
	Namespaces  Namespaces
	Files       Files
	User        User        // from FindUser
	Mounts      []pod.Mount // from ResolveMounts; mapped ids are the engine's to mount and to take away
	Devices     []Device    // from ResolveDevices
	Node        Node
	// ProcessLabel and MountLabel are of SELinux; "" is none. A privileged container's process has none.
	ProcessLabel string
	MountLabel   string
}

// Namespaces are the paths of namespaces to join. An empty Net, IPC or UTS is the node's.
type Namespaces struct {
	Net string
	IPC string
	UTS string
	// User owns the others where the sandbox has one of its own.
	User string
	// PID is joined when the container shares its pod's or another container's PID namespace.
	PID string
}

// Files are the sandbox's files; an empty one is not mounted.
type Files struct {
	ResolvConf string
	Hosts      string
	Hostname   string
	Shm        string // directory that becomes /dev/shm
}

// Node is what the machine and the OCI runtime can do.
type Node struct {
	OCIVersion  string   // highest that the runtime accepts
	Bounding    []string // capabilities that may be given, with "CAP_"
	OOMScoreAdj int      // the server's own; a container's is never lower
	Hostname    string   // HOSTNAME of containers on the node's network

	CgroupV2          bool
	SystemdCgroup     bool // systemd makes the containers' cgroups
	AccountsSwap      bool
	LimitsHugepages   bool
	RecursiveReadOnly bool // mount option "rro"
	AppArmor          bool
	DefaultProfile    string // of AppArmor, loaded; "" where there is none
}

// Build returns the OCI spec, without CDI devices: what their vendors' files say is for the engine to
// add. Errors are errdefs.ErrInvalidArgument for requests that can never work
// and errdefs.ErrNotImplemented for what is not built; both name the field.
func Build(r *Request) (*specs.Spec, error) {
	if err := refuse(r); err != nil {
		return nil, err
	}
	process, err := process(r)
	if err != nil {
		return nil, err
	}
	mounts, propagation, err := mounts(r)
	if err != nil {
		return nil, err
	}
	linux, err := linux(r)
	if err != nil {
		return nil, err
	}
	linux.RootfsPropagation = propagation
	s := &specs.Spec{
		Version:     r.Node.OCIVersion,
		Process:     process,
		Root:        &specs.Root{Path: r.Rootfs, Readonly: r.Container.Security.ReadOnlyRootfs},
		Mounts:      mounts,
		Annotations: annotations(r),
		Linux:       linux,
	}
	linux.Seccomp, err = seccompProfile(r, s)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// refuse names the first field that asks for what neither this package nor the node can do.
func refuse(r *Request) error {
	c := r.Container
	if own := c.Namespaces.User; own != nil && !reflect.DeepEqual(own, r.Sandbox.Namespaces.User) {
		return fmt.Errorf("userns_options: not those of the pod: %w", errdefs.ErrInvalidArgument)
	}
	if err := refuseProfile(c.Security.AppArmor, &r.Node); err != nil {
		return err
	}
	for name, unified := range c.Resources.Unified {
		if !r.Node.CgroupV2 {
			return fmt.Errorf("unified resource %s=%s needs cgroup v2: %w", name, unified, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func refuseProfile(p *pod.Profile, node *Node) error {
	switch {
	case p == nil || p.Kind == pod.ProfileUnconfined:
		return nil
	case p.Kind == pod.ProfileLocalhost && !node.AppArmor:
		return fmt.Errorf("apparmor profile %q: the kernel has no AppArmor: %w", p.Ref, errdefs.ErrInvalidArgument)
	case p.Kind == pod.ProfileRuntimeDefault && node.AppArmor && node.DefaultProfile == "":
		return fmt.Errorf("apparmor profile %s: none is loaded: %w", p.Kind, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func linux(r *Request) (*specs.Linux, error) {
	resources, err := resources(r)
	if err != nil {
		return nil, err
	}
	namespaces, err := namespaces(r)
	if err != nil {
		return nil, err
	}
	l := &specs.Linux{
		CgroupsPath: r.CgroupsPath,
		MountLabel:  r.MountLabel,
		Namespaces:  namespaces,
		Resources:   resources,
	}
	if user := r.Sandbox.Namespaces.User; user != nil {
		l.UIDMappings, l.GIDMappings = IDMappings(user.UIDs), IDMappings(user.GIDs)
	}
	sec := r.Container.Security
	if !sec.Privileged {
		l.MaskedPaths = sec.MaskedPaths
		l.ReadonlyPaths = sec.ReadonlyPaths
	}
	for _, d := range r.Devices {
		l.Devices = append(l.Devices, d.node())
	}
	return l, nil
}

func namespaces(r *Request) ([]specs.LinuxNamespace, error) {
	all := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	join := func(kind specs.LinuxNamespaceType, path string) {
		if path != "" {
			all = append(all, specs.LinuxNamespace{Type: kind, Path: path})
		}
	}
	join(specs.UserNamespace, r.Namespaces.User)
	join(specs.NetworkNamespace, r.Namespaces.Net)
	join(specs.IPCNamespace, r.Namespaces.IPC)
	join(specs.UTSNamespace, r.Namespaces.UTS)
	switch mode := r.Container.Namespaces.PID; mode {
	case pod.NamespaceNode:
	case pod.NamespaceContainer, "":
		all = append(all, specs.LinuxNamespace{Type: specs.PIDNamespace})
	case pod.NamespacePod, pod.NamespaceTarget:
		if r.Namespaces.PID == "" {
			return nil, fmt.Errorf("pid namespace %s: nothing to join: %w", mode, errdefs.ErrInvalidArgument)
		}
		join(specs.PIDNamespace, r.Namespaces.PID)
	default:
		return nil, fmt.Errorf("pid namespace %q: %w", mode, errdefs.ErrInvalidArgument)
	}
	if r.Node.CgroupV2 && !r.Container.Security.Privileged {
		all = append(all, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return all, nil
}

// IDMappings are what a user namespace maps, as OCI runtimes want to hear it.
func IDMappings(ids []pod.IDMapping) []specs.LinuxIDMapping {
	all := make([]specs.LinuxIDMapping, 0, len(ids))
	for _, m := range ids {
		all = append(all, specs.LinuxIDMapping{ContainerID: m.ContainerID, HostID: m.HostID, Size: m.Length})
	}
	return all
}

// annotations are those that OCI runtimes and their hooks know from containerd. The client's own are
// not passed on: some runtimes take orders from annotations.
func annotations(r *Request) map[string]string {
	const prefix = criPrefix
	all := map[string]string{
		prefix + "container-type":    "container",
		prefix + "container-name":    r.Container.Name,
		prefix + "image-name":        r.Container.ImageName,
		prefix + "sandbox-id":        string(r.Container.Sandbox),
		prefix + "sandbox-name":      r.Sandbox.Metadata.Name,
		prefix + "sandbox-namespace": r.Sandbox.Metadata.Namespace,
		prefix + "sandbox-uid":       r.Sandbox.Metadata.UID,
	}
	maps.DeleteFunc(all, func(_, value string) bool { return value == "" })
	if p, _ := Processes(r.Container.Resources.Unified); r.Node.SystemdCgroup {
		limit := uint64(math.MaxUint64)
		if p != nil && *p.Limit > 0 {
			limit = uint64(*p.Limit)
		}
		all[tasksMax] = fmt.Sprintf("uint64 %d", limit)
	}
	return all
}

// tasksMax is an annotation that runtimes make a property of the scope: crun up to 1.8 writes limits of
// processes into the cgroup alone, where systemd writes its own over it.
const tasksMax = "org.systemd.property.TasksMax"

// last keeps the last of several entries with one key, in the place of the first.
func last[T any, K comparable](all []T, key func(T) K) []T {
	at := make(map[K]int, len(all))
	kept := make([]T, 0, len(all))
	for _, v := range all {
		if i, seen := at[key(v)]; seen {
			kept[i] = v
			continue
		}
		at[key(v)] = len(kept)
		kept = append(kept, v)
	}
	return slices.Clip(kept)
}

const criPrefix = "io.kubernetes.cri."

// OwnSandbox takes out of the spec that the container is one of a sandbox. A runtime that sandboxes, such as
// gVisor's, looks for that sandbox, which is not its own, and without makes one for the container.
func OwnSandbox(s *specs.Spec) {
	delete(s.Annotations, criPrefix+"container-type")
	delete(s.Annotations, criPrefix+"sandbox-id")
}
