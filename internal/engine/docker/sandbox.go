package docker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"gantry/internal/cgroup"
	"gantry/internal/engine"
	"gantry/internal/netns"
	"gantry/internal/pod"
)

const (
	shmSize = 64 << 20 // bytes, as in Docker and containerd
	// pauseOOMScore keeps the pause container alive longest, as the kubelet wants it (oom.PodInfraOOMAdj).
	pauseOOMScore = -998
	// shimGroup is the annotation that containerd's shim for runc looks for.
	shimGroup = "io.containerd.runc.v2.group"
)

// defaultSysctls let programs without privileges use ports below 1024 and ping, as on the native
// engine. A pod's own values win.
var defaultSysctls = map[string]string{
	"net.ipv4.ip_unprivileged_port_start": "0",
	"net.ipv4.ping_group_range":           "0 2147483647",
}

// CreateSandbox makes and starts the pod's pause container: its namespaces exist only while it runs.
// The network namespace is pinned beside it, so that the network can be detached from a pod whose
// pause container has died.
func (e *Engine) CreateSandbox(ctx context.Context, spec *pod.SandboxSpec, _ engine.Files) (engine.Made, error) {
	if err := ctx.Err(); err != nil {
		return engine.Made{}, context.Cause(ctx)
	}
	node, err := e.node(ctx)
	if err != nil {
		return engine.Made{}, err
	}
	opts, err := node.pause(spec)
	if err != nil {
		return engine.Made{}, err
	}
	if err = e.limit(node, spec); err != nil {
		return engine.Made{}, err
	}
	made, err := e.runPause(ctx, spec, opts)
	if err != nil {
		return engine.Made{}, undo(ctx, err, func(ctx context.Context) error { return e.RemoveSandbox(ctx, spec.Key) })
	}
	made.CgroupPath, err = node.driver.Parent(spec.CgroupParent, string(spec.Key))
	return made, err
}

// pause is what is asked of Docker for the pause container, without its image.
func (n *node) pause(spec *pod.SandboxSpec) (client.ContainerCreateOptions, error) {
	none := client.ContainerCreateOptions{}
	if spec.Namespaces.User != nil {
		return none, fmt.Errorf("userns_options: Docker maps ids for the daemon as a whole: %w", errdefs.ErrNotImplemented)
	}
	parent, err := n.cgroupParent(spec)
	if err != nil {
		return none, err
	}
	security, err := n.sandboxSecurity(&spec.Security)
	if err != nil {
		return none, err
	}
	noInit := false
	host := &container.HostConfig{
		NetworkMode: "none", IpcMode: "shareable", ShmSize: shmSize, Sysctls: maps.Clone(spec.Sysctls),
		OomScoreAdj: max(pauseOOMScore, n.oomScore), ReadonlyRootfs: true, SecurityOpt: security, Init: &noInit,
		UsernsMode: n.usernsMode(), LogConfig: container.LogConfig{Type: "none"},
		Resources: container.Resources{CgroupParent: parent, CPUShares: 2},
	}
	n.group(host, spec.Key)
	if spec.HostNetwork() {
		host.NetworkMode, host.UTSMode = "host", "host"
	} else {
		host.Sysctls = maps.Clone(defaultSysctls)
		maps.Copy(host.Sysctls, spec.Sysctls)
	}
	if spec.Namespaces.IPC == pod.NamespaceNode {
		host.IpcMode = "host"
	}
	switch spec.Namespaces.PID {
	case pod.NamespaceNode:
		host.PidMode = "host"
	case pod.NamespacePod, pod.NamespaceContainer, "":
	default:
		return none, fmt.Errorf("pid namespace of a sandbox: %q: %w", spec.Namespaces.PID, errdefs.ErrInvalidArgument)
	}
	config := &container.Config{Labels: sandboxLabels(spec)}
	if !spec.HostNetwork() {
		// Docker has nothing to do in a network that is CNI's. (20.10 starts itself anew for each it prepares.)
		config.Hostname, config.NetworkDisabled = spec.Hostname, true
	}
	return client.ContainerCreateOptions{Config: config, HostConfig: host, Name: sandboxName(&spec.Metadata)}, nil
}

// runPause makes the pause container, starts it and pins its network namespace. Each is found done
// when an earlier try did it.
func (e *Engine) runPause(ctx context.Context, spec *pod.SandboxSpec, opts client.ContainerCreateOptions) (engine.Made, error) {
	id, fresh, err := e.createPause(ctx, spec.Key, opts)
	if err != nil {
		return engine.Made{}, err
	}
	if !fresh {
		if err = e.onlyLiving(ctx, spec.Key, id); err != nil {
			return engine.Made{}, err
		}
	}
	e.objects.put(spec.Key, object{id: id})
	if err = e.start(ctx, id); err != nil {
		return engine.Made{}, fmt.Errorf("start the pause container: %w", err)
	}
	c, err := e.inspect(ctx, id)
	if err != nil {
		return engine.Made{}, err
	}
	if !c.State.Running || c.State.Pid <= 0 {
		return engine.Made{}, fmt.Errorf("the pause container has ended with %d: %w", c.State.ExitCode, errdefs.ErrFailedPrecondition)
	}
	e.objects.put(spec.Key, e.objectOf(c))
	made := engine.Made{ID: id}
	if spec.HostNetwork() {
		return made, nil
	}
	made.NetNS = e.netNS(spec.Key)
	if netns.IsPinned(made.NetNS) && !fresh {
		return made, nil
	}
	source := "/proc/" + strconv.Itoa(c.State.Pid) + "/ns/net"
	if err = netns.LoopbackUp(source); err != nil {
		return made, err
	}
	return made, netns.Pin(source, made.NetNS)
}

// onlyLiving refuses a pause container that has ended: its namespaces are gone, and the network of a
// new start would be another.
func (e *Engine) onlyLiving(ctx context.Context, key pod.Key, id string) error {
	c, err := e.inspect(ctx, id)
	if err != nil {
		return err
	}
	if hasEnded(c.State) {
		return fmt.Errorf("sandbox %s has ended: %w", key.Short(), errdefs.ErrFailedPrecondition)
	}
	return nil
}

// netNS is where a sandbox's network namespace is pinned.
func (e *Engine) netNS(key pod.Key) string {
	return filepath.Join(e.opts.NetNSDir, "gantry-"+string(key))
}

// StartSandbox does nothing: the pause container runs since it was created.
func (e *Engine) StartSandbox(ctx context.Context, key pod.Key) error {
	_, err := e.find(ctx, key)
	return err
}

// UpdateSandbox bounds the pod as a whole anew, where its cgroup is ours: the client sees to its own.
func (e *Engine) UpdateSandbox(ctx context.Context, key pod.Key, limits *pod.Resources) error {
	if _, err := e.find(ctx, key); err != nil {
		return err
	}
	node, err := e.node(ctx)
	if err != nil {
		return err
	}
	own, err := node.ownCgroup(key)
	if err != nil || own == "" || !e.cgroups.Exists(own) {
		return err
	}
	return e.cgroups.SetLimits(own, limits)
}

// limit bounds the cgroup of a pod that has one of its own.
func (e *Engine) limit(n *node, spec *pod.SandboxSpec) error {
	own, err := n.ownCgroup(spec.Key)
	if err != nil || own == "" || spec.CgroupParent != "" || spec.Resources == nil {
		return err
	}
	if err := e.cgroups.Create(own); err != nil {
		return err
	}
	return e.cgroups.SetLimits(own, spec.Resources)
}

// StopSandbox kills the pause container and unpins its network namespace.
func (e *Engine) StopSandbox(ctx context.Context, key pod.Key) error {
	is, err := e.find(ctx, key)
	switch {
	case err == nil && is.exit != nil:
	case err == nil:
		err = e.kill(ctx, key, is.id, "SIGKILL")
	case errdefs.IsNotFound(err):
		err = nil
	}
	return errors.Join(err, netns.Unpin(e.netNS(key)))
}

// RemoveSandbox removes everything that CreateSandbox made.
func (e *Engine) RemoveSandbox(ctx context.Context, key pod.Key) error {
	if err := e.removeAll(ctx, key); err != nil {
		return err
	}
	if err := netns.Unpin(e.netNS(key)); err != nil {
		return err
	}
	node, err := e.node(ctx)
	if err != nil {
		return err
	}
	own, err := node.ownCgroup(key)
	if err != nil || own == "" {
		return err
	}
	if err := e.cgroups.RemoveEmpty(own); err != nil && !errors.Is(err, unix.EBUSY) {
		return err
	}
	return nil
}

// group has one process of containerd's, a shim, look after all containers of a pod, as under containerd's own CRI.
func (n *node) group(host *container.HostConfig, sandbox pod.Key) {
	if n.speaks("1.43") {
		host.Annotations = map[string]string{shimGroup: string(sandbox)}
	}
}

// cgroupParent is what Docker is told: a path, or the name of a slice under systemd.
func (n *node) cgroupParent(spec *pod.SandboxSpec) (string, error) {
	parent, err := n.driver.Parent(spec.CgroupParent, string(spec.Key))
	if err == nil && n.driver == cgroup.Systemd {
		parent = path.Base(parent)
	}
	return parent, err
}

// ownCgroup is the cgroup of a pod for which the client names none, "" where systemd makes it.
func (n *node) ownCgroup(key pod.Key) (string, error) {
	if n.driver == cgroup.Systemd {
		return "", nil
	}
	return n.driver.Parent("", string(key))
}

// undo runs a removal after a failure, out of the caller's reach, and adds what it could not remove
// to the error.
func undo(ctx context.Context, err error, remove func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	return errors.Join(err, remove(ctx))
}
