package native

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/cgroup"
	"gantry/internal/engine"
	"gantry/internal/netns"
	"gantry/internal/ocispec"
	"gantry/internal/pod"
)

// shmSize is what a pod's /dev/shm holds, in bytes: as in Docker and containerd.
const shmSize = "64m"

// nodeShm is the /dev/shm of pods in the node's IPC namespace.
const nodeShm = "/dev/shm"

// defaultSysctls let programs without privileges use ports below 1024 and ping, in a network
// namespace of their own, as containerd and Docker do. A pod's own values win.
var defaultSysctls = map[string]string{
	"net.ipv4.ip_unprivileged_port_start": "0",
	"net.ipv4.ping_group_range":           "0 2147483647",
}

// CreateSandbox makes the pod's namespaces, its /dev/shm, and a pause process where its containers
// share a PID namespace. A sandbox that is whole already is returned as it is; what a crash left is
// made anew.
func (e *Engine) CreateSandbox(ctx context.Context, spec *pod.SandboxSpec, _ engine.Files) (engine.Made, error) {
	if err := ctx.Err(); err != nil {
		return engine.Made{}, context.Cause(ctx)
	}
	if err := errors.Join(validate(spec), e.mapsFor(ctx, spec)); err != nil {
		return engine.Made{}, err
	}
	r, err := e.plan(spec)
	if err != nil {
		return engine.Made{}, err
	}
	if err := os.Mkdir(e.sandboxDir(spec.Key), 0o711); errors.Is(err, fs.ErrExist) {
		if old, readErr := e.readSandbox(spec.Key); readErr == nil && e.ready(ctx, spec.Key, old) {
			return old.made(spec.Key), nil
		}
		if err = e.RemoveSandbox(ctx, spec.Key); err != nil {
			return engine.Made{}, fmt.Errorf("remove what is left of sandbox %s: %w", spec.Key.Short(), err)
		}
		return e.CreateSandbox(ctx, spec, engine.Files{})
	} else if err != nil {
		return engine.Made{}, fmt.Errorf("create sandbox: %w", err)
	}
	if err := e.makeSandbox(ctx, spec, r); err != nil {
		return engine.Made{}, undo(ctx, err, func(ctx context.Context) error { return e.RemoveSandbox(ctx, spec.Key) })
	}
	return r.made(spec.Key), nil
}

// validate refuses what this engine cannot do before anything is made.
func validate(spec *pod.SandboxSpec) error {
	if err := checkUser(&spec.Namespaces); err != nil {
		return err
	}
	switch pid := spec.Namespaces.PID; pid {
	case pod.NamespacePod, pod.NamespaceContainer, pod.NamespaceNode, "":
		return nil
	default:
		return fmt.Errorf("pid namespace of a sandbox: %q: %w", pid, errdefs.ErrInvalidArgument)
	}
}

// plan decides where everything of the sandbox will be.
func (e *Engine) plan(spec *pod.SandboxSpec) (*sandboxRecord, error) {
	if _, _, err := e.handlers.Load().named(spec.Handler); err != nil {
		return nil, err
	}
	parent, err := e.opts.CgroupDriver.Parent(spec.CgroupParent, string(spec.Key))
	if err != nil {
		return nil, err
	}
	return &sandboxRecord{
		Handler:     spec.Handler,
		Namespaces:  e.namespaces(spec),
		Cgroup:      parent,
		OwnCgroup:   spec.CgroupParent == "" || !e.cgroups.Exists(parent),
		NamedCgroup: spec.CgroupParent != "",
		Pause:       spec.Namespaces.PID == pod.NamespacePod,
	}, nil
}

func (e *Engine) makeSandbox(ctx context.Context, spec *pod.SandboxSpec, r *sandboxRecord) error {
	dir := e.sandboxDir(spec.Key)
	err := e.ids.claim(spec.Key, r.Namespaces)
	if err != nil {
		return err
	}
	if r.Labels, err = e.labels.Pod(spec.Key, &spec.Security); err != nil {
		return err
	}
	if err := e.writeSandbox(spec.Key, r); err != nil {
		return err
	}
	if err := e.inherit(spec.Key, r); err != nil {
		return err
	}
	e.opts.Hook("sandbox/recorded")
	ns := r.Namespaces
	if ns.Net != "" {
		ns.Sysctls = withDefaults(ns.Sysctls)
	}
	if r.Namespaces.IPC != "" {
		if err := mountShm(filepath.Join(dir, "shm"), rootOf(ns), r.Labels.Mount); err != nil {
			return fmt.Errorf("mount /dev/shm of the pod: %w", err)
		}
	}
	e.opts.Hook("sandbox/shm mounted")
	if err := netns.Create(ns); err != nil {
		return err
	}
	e.opts.Hook("sandbox/namespaces pinned")
	if err := e.limit(r, spec.Resources); err != nil {
		return err
	}
	e.opts.Hook("sandbox/cgroup limited")
	if r.Pause {
		return e.startPause(ctx, spec.Key, r)
	}
	return nil
}

// inherit makes a cgroup the sandbox's that was there when the sandbox was planned, and that its owner,
// which saw no record of the sandbox yet, has removed since.
func (e *Engine) inherit(key pod.Key, r *sandboxRecord) error {
	if r.OwnCgroup {
		return nil
	}
	e.sharing.Lock()
	defer e.sharing.Unlock()
	if e.cgroups.Exists(r.Cgroup) {
		return nil
	}
	r.OwnCgroup = true
	return e.writeSandbox(key, r)
}

func withDefaults(asked map[string]string) map[string]string {
	all := make(map[string]string, len(asked)+len(defaultSysctls))
	for name, value := range defaultSysctls {
		all[name] = value
	}
	for name, value := range asked {
		all[name] = value
	}
	return all
}

func mountShm(dir string, owner ocispec.Owner, label string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	options := fmt.Sprintf("mode=1777,size=%s,uid=%d,gid=%d", shmSize, owner.UID, owner.GID)
	if label != "" {
		options += `,context="` + label + `"`
	}
	return unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options)
}

// unmountShm undoes mountShm; what is not mounted is no error.
func unmountShm(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount /dev/shm of the pod: %w", err)
	}
	return nil
}

// limit bounds the cgroup of a pod as a whole. Where the client made it, as the kubelet does, the
// client has set its limits too; a slice is systemd's to change.
func (e *Engine) limit(r *sandboxRecord, limits *pod.Resources) error {
	if !r.OwnCgroup || limits == nil || e.opts.CgroupDriver == cgroup.Systemd {
		return nil
	}
	if err := e.cgroups.Create(r.Cgroup); err != nil {
		return err
	}
	return e.cgroups.SetLimits(r.Cgroup, limits)
}

// StartSandbox does nothing: a native sandbox is ready when it was created.
func (e *Engine) StartSandbox(_ context.Context, key pod.Key) error {
	_, err := e.readSandbox(key)
	return err
}

// UpdateSandbox bounds the pod as a whole anew.
func (e *Engine) UpdateSandbox(_ context.Context, key pod.Key, limits *pod.Resources) error {
	r, err := e.readSandbox(key)
	if err != nil {
		return err
	}
	return e.limit(r, limits)
}

// StopSandbox ends the pause process and gives back the namespaces and /dev/shm.
func (e *Engine) StopSandbox(ctx context.Context, key pod.Key) error {
	dir := e.sandboxDir(key)
	r, err := e.recorded(key)
	if err != nil {
		// Without a record nothing was made.
		return absentIsFine(err)
	}
	var errs []error
	if r.Pause {
		errs = append(errs, e.endPause(ctx, key, r))
	}
	e.opts.Hook("sandbox/pause ended")
	unmounted := make(chan error, 1) // with the others: see netns.Remove
	go func() { unmounted <- unmountShm(filepath.Join(dir, "shm")) }()
	errs = append(errs, netns.Remove(r.Namespaces))
	e.opts.Hook("sandbox/namespaces unpinned")
	err = errors.Join(append(errs, <-unmounted)...)
	if err == nil {
		e.ids.release(key)
	}
	return err
}

// RemoveSandbox removes everything CreateSandbox made.
func (e *Engine) RemoveSandbox(ctx context.Context, key pod.Key) error {
	if err := e.StopSandbox(ctx, key); err != nil {
		return err
	}
	r, err := e.recorded(key)
	if err == nil && r.NamedCgroup {
		e.sharing.Lock()
		defer e.sharing.Unlock()
		r, err = e.recorded(key) // the cgroup may have become this sandbox's
	}
	if err == nil && r.OwnCgroup {
		if err := e.removeCgroup(ctx, key, r); err != nil {
			return err
		}
	}
	e.opts.Hook("sandbox/cgroup removed")
	if err := os.RemoveAll(e.sandboxDir(key)); err != nil {
		return fmt.Errorf("remove sandbox: %w", err)
	}
	e.sandboxes.gone(key)
	e.labels.Release(key)
	return nil
}

// recorded is the sandbox's record, or, where a power cut spoiled it, what it may have held at most.
func (e *Engine) recorded(key pod.Key) (*sandboxRecord, error) {
	r, err := e.readSandbox(key)
	if err == nil || errdefs.IsNotFound(err) {
		return r, err
	}
	parent, err := e.opts.CgroupDriver.Parent("", string(key))
	most := &pod.SandboxSpec{Key: key, Namespaces: pod.Namespaces{User: new(pod.UserNamespace)}}
	return &sandboxRecord{Namespaces: e.namespaces(most), Cgroup: parent, OwnCgroup: true, Pause: true}, err
}

// removeCgroup kills, and takes what is below, only in a cgroup that is the sandbox's alone. One that
// the client named may have others in it: a sandbox that is in it as well removes it in its turn. But as
// long as a container of the sandbox is, which could not be removed yet, nobody would remove it later.
// The caller holds sharing where the client named it.
func (e *Engine) removeCgroup(ctx context.Context, key pod.Key, r *sandboxRecord) error {
	if !r.NamedCgroup {
		return e.cgroups.Remove(ctx, r.Cgroup)
	}
	inherited, err := e.bequeath(key, r.Cgroup)
	if err != nil {
		return err
	}
	if !inherited {
		if err = e.cgroups.RemoveEmpty(r.Cgroup); err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	containers, err := keys(e.containerDir(""))
	if err != nil {
		return err
	}
	for _, c := range containers {
		if record, err := e.readContainer(c); err == nil && record.Sandbox == key {
			return fmt.Errorf("cgroup %s: container %s is not removed yet: %w", r.Cgroup, c.Short(), errdefs.ErrUnavailable)
		}
	}
	return nil
}

// bequeath makes a cgroup another sandbox's, if one is in it, and says whether it did: a pod that is made
// while the one that it replaces is being removed.
func (e *Engine) bequeath(from pod.Key, cgroup string) (bool, error) {
	for _, key := range e.sandboxes.keysBy(cgroup) {
		if key == from {
			continue
		}
		heir, err := e.readSandbox(key)
		if err != nil || heir.Cgroup != cgroup {
			continue // it is being made or removed, or elsewhere
		}
		if heir.OwnCgroup {
			return true, nil
		}
		heir.OwnCgroup = true
		err = e.writeSandbox(key, heir)
		return err == nil, err
	}
	return false, nil
}

// ready says whether all of the sandbox exists.
func (e *Engine) ready(ctx context.Context, key pod.Key, r *sandboxRecord) bool {
	if !e.whole(key, r) {
		return false
	}
	if !r.Pause {
		return true
	}
	states, err := e.opts.Keeper.List(ctx)
	return err == nil && pauseRuns(states, key)
}

// whole says whether every namespace of the sandbox is pinned.
func (e *Engine) whole(key pod.Key, r *sandboxRecord) bool {
	return r.Namespaces.Pinned() && (!r.Pause || netns.IsPinned(e.pidPin(key)))
}
