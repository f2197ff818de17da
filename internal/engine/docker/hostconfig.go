package docker

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"gantry/internal/engine"
	"gantry/internal/ocispec"
	"gantry/internal/pod"
	"gantry/internal/resclass"
)

// refused is the error for a field that Docker's API cannot express.
func refused(field, why string) error {
	return fmt.Errorf("%s: %s: %w", field, why, errdefs.ErrNotImplemented)
}

// container is what is asked of Docker for a container, without its log. Mounts are resolved.
func (n *node) container(req *engine.Create) (client.ContainerCreateOptions, error) {
	c := req.Spec
	if err := refuseClasses(req); err != nil {
		return client.ContainerCreateOptions{}, err
	}
	config, err := n.config(req)
	if err != nil {
		return client.ContainerCreateOptions{}, err
	}
	host, err := n.hostConfig(req)
	if err != nil {
		return client.ContainerCreateOptions{}, err
	}
	return client.ContainerCreateOptions{
		Config: config, HostConfig: host, Name: containerName(c, &req.Sandbox.Spec.Metadata),
	}, nil
}

// refuseClasses refuses what annotations of the container or its pod ask for.
func refuseClasses(req *engine.Create) error {
	of := resclass.Container{
		Name: req.Spec.Name, Annotations: req.Spec.Annotations, PodAnnotations: req.Sandbox.Spec.Annotations,
	}
	asked, err := of.Asked()
	switch {
	case err != nil:
		return fmt.Errorf("annotations: %w: %w", errdefs.ErrInvalidArgument, err)
	case asked.BlockIO != "":
		return refused("annotation blockio.resources.beta.kubernetes.io", "Docker's API has no word for classes")
	case asked.RDT != "":
		return refused("annotation rdt.resources.beta.kubernetes.io", "Docker's API has no word for classes")
	}
	return nil
}

// config is the part of a request that does not depend on the node. The image's health check is
// turned off: Kubernetes has its own probes.
func (n *node) config(req *engine.Create) (*container.Config, error) {
	c := req.Spec
	env, err := environment(c.Env)
	if err != nil {
		return nil, err
	}
	config := &container.Config{
		Image: req.Image.ID, Entrypoint: c.Command, Cmd: c.Args, WorkingDir: c.WorkingDir, Env: env,
		Labels: containerLabels(c, req.Sandbox.ID, n.files(&c.Resources)), StopSignal: c.StopSignal,
		Tty: c.TTY, OpenStdin: c.Stdin, StdinOnce: c.StdinOnce,
		User: userOf(&c.Security), Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}
	return config, nil
}

func environment(vars []pod.Var) ([]string, error) {
	env := make([]string, 0, len(vars))
	for _, v := range vars {
		if v.Name == "" || strings.ContainsAny(v.Name, "=\x00") || strings.Contains(v.Value, "\x00") {
			return nil, fmt.Errorf("envs: %q is not a variable: %w", v.Name, errdefs.ErrInvalidArgument)
		}
		env = append(env, v.Name+"="+v.Value)
	}
	return env, nil
}

// userOf is "user", "user:group", or "" for the image's.
func userOf(s *pod.Security) string {
	user := s.RunAsUsername
	if s.RunAsUser != nil {
		user = strconv.FormatInt(*s.RunAsUser, 10)
	}
	if s.RunAsGroup != nil && user != "" {
		user += ":" + strconv.FormatInt(*s.RunAsGroup, 10)
	}
	return user
}

func (n *node) hostConfig(req *engine.Create) (*container.HostConfig, error) {
	c := req.Spec
	parent, err := n.cgroupParent(&req.Sandbox.Spec)
	if err != nil {
		return nil, err
	}
	host := &container.HostConfig{
		Privileged: c.Security.Privileged, ReadonlyRootfs: c.Security.ReadOnlyRootfs,
		CapAdd: c.Security.AddCaps, CapDrop: c.Security.DropCaps,
		OomScoreAdj: max(int(c.Resources.OOMScoreAdj), n.oomScore), UsernsMode: n.usernsMode(),
	}
	n.group(host, c.Sandbox)
	for _, part := range []func(*container.HostConfig, *engine.Create) error{n.join, n.confine, n.mount} {
		if err = part(host, req); err != nil {
			return nil, err
		}
	}
	limits, err := n.resources(&c.Resources)
	if err != nil {
		return nil, err
	}
	host.Resources = limits
	host.CgroupParent = parent
	if host.Devices, err = devices(c.Devices); err != nil {
		return nil, err
	}
	host.DeviceRequests, err = n.cdi(c.CDIDevices)
	return host, err
}

// join sets the namespaces: those of the pod are the pause container's.
func (n *node) join(host *container.HostConfig, req *engine.Create) error {
	ns, sandbox := &req.Spec.Namespaces, "container:"+req.Sandbox.ID
	if ns.User != nil {
		return refused("userns_options", "Docker maps ids for the daemon as a whole")
	}
	host.NetworkMode, host.IpcMode = container.NetworkMode(sandbox), container.IpcMode(sandbox)
	if req.Sandbox.Spec.HostNetwork() {
		host.UTSMode = "host"
	}
	if req.Sandbox.Spec.Namespaces.IPC == pod.NamespaceNode {
		host.IpcMode = "host"
	}
	switch ns.PID {
	case pod.NamespaceContainer, "":
	case pod.NamespacePod:
		host.PidMode = container.PidMode(sandbox)
	case pod.NamespaceNode:
		host.PidMode = "host"
	case pod.NamespaceTarget:
		host.PidMode = container.PidMode("container:" + ns.TargetID)
	default:
		return fmt.Errorf("pid namespace %q: %w", ns.PID, errdefs.ErrInvalidArgument)
	}
	if n.cgroupV2 && n.speaks("1.41") {
		host.CgroupnsMode = "private"
		if req.Spec.Security.Privileged {
			host.CgroupnsMode = "host"
		}
	}
	return nil
}

// resources are limits as Docker writes them. Without a swap limit of its own a container gets no
// swap beyond its memory, where the node accounts for swap.
func (n *node) resources(r *pod.Resources) (container.Resources, error) {
	out := container.Resources{
		CPUPeriod: r.CPUPeriod, CPUQuota: r.CPUQuota, CPUShares: r.CPUShares,
		CpusetCpus: r.CPUSetCPUs, CpusetMems: r.CPUSetMems, Memory: r.MemoryLimit,
	}
	if n.swap {
		out.MemorySwap, _ = r.SwapBound()
	}
	for _, h := range r.HugepageLimits {
		if h.Limit != 0 { // the kubelet sends a zero for every page size
			return out, refused("hugepage_limits", "Docker does not limit huge pages")
		}
	}
	if limit, _ := ocispec.Processes(r.Unified); limit != nil {
		out.PidsLimit = limit.Limit
	}
	for name := range n.files(r) {
		if !n.cgroupV2 {
			return out, fmt.Errorf("unified resource %s needs cgroup v2: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return out, extra(&out, &r.Extra)
}

// extra adds what plugins may limit and the CRI may not.
func extra(out *container.Resources, x *pod.ExtraResources) error {
	for field, set := range map[string]bool{
		"kernel_memory": x.KernelMemory != 0, "kernel_memory_tcp": x.KernelTCPMemory != 0,
		"use_hierarchy": x.UseHierarchy != nil, "device rules": len(x.DeviceRules) > 0,
		"blockio_class": x.BlockIOClass != nil, "rdt_class": x.RDTClass != nil,
	} {
		if set {
			return refused("adjustment of linux.resources: "+field, "Docker's API has no word for it")
		}
	}
	out.MemoryReservation, out.OomKillDisable = x.MemoryReservation, x.DisableOOMKiller
	if x.Swappiness != nil {
		swappiness := int64(*x.Swappiness) //nolint:gosec // 0..100
		out.MemorySwappiness = &swappiness
	}
	if x.RealtimeRuntime != nil {
		out.CPURealtimeRuntime = *x.RealtimeRuntime
	}
	out.CPURealtimePeriod = int64(x.RealtimePeriod) //nolint:gosec // microseconds
	if x.PidsLimit != nil {
		out.PidsLimit = x.PidsLimit
	}
	return nil
}

func devices(list []pod.Device) ([]container.DeviceMapping, error) {
	var all []container.DeviceMapping
	for _, d := range list {
		if _, err := os.Stat(d.HostPath); err != nil {
			return nil, fmt.Errorf("devices: host_path: %w: %w", errdefs.ErrInvalidArgument, err)
		}
		all = append(all, container.DeviceMapping{PathOnHost: d.HostPath, PathInContainer: d.ContainerPath, CgroupPermissions: d.Permissions})
	}
	return all, nil
}
