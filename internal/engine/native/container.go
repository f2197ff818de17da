package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/engine"
	"gantry/internal/image"
	"gantry/internal/keeper"
	"gantry/internal/ociruntime"
	"gantry/internal/ocispec"
	"gantry/internal/pod"
	"gantry/internal/resclass"
)

// CreateContainer prepares root file system and bundle and has the keeper create the container. One
// that exists already is returned as it is; what a crash left is made anew.
func (e *Engine) CreateContainer(ctx context.Context, req *engine.Create) (engine.Created, error) {
	if err := ctx.Err(); err != nil {
		return engine.Created{}, context.Cause(ctx)
	}
	key := req.Spec.Key
	if err := os.Mkdir(e.containerDir(key), 0o711); errors.Is(err, fs.ErrExist) {
		if created, ok := e.existing(ctx, key); ok {
			return created, nil
		}
		if err = e.RemoveContainer(ctx, key); err != nil {
			return engine.Created{}, fmt.Errorf("remove what is left of container %s: %w", key.Short(), err)
		}
		return e.CreateContainer(ctx, req)
	} else if err != nil {
		return engine.Created{}, fmt.Errorf("create container: %w", err)
	}
	e.opts.Hook("container/directory made")
	created, err := e.makeContainer(ctx, req)
	if err != nil {
		return engine.Created{}, undo(ctx, err, func(ctx context.Context) error { return e.RemoveContainer(ctx, key) })
	}
	return created, nil
}

// existing returns the container if the keeper has all of it.
func (e *Engine) existing(ctx context.Context, key pod.Key) (engine.Created, bool) {
	r, err := e.readContainer(key)
	if err != nil {
		return engine.Created{}, false
	}
	states, err := e.opts.Keeper.List(ctx)
	if err != nil {
		return engine.Created{}, false
	}
	i := slices.IndexFunc(states, func(s keeper.State) bool { return s.Key == string(key) && s.Phase != phaseCreating })
	if i < 0 {
		return engine.Created{}, false
	}
	r.Created.Pid = states[i].Pid
	return r.Created, true
}

func (e *Engine) makeContainer(ctx context.Context, req *engine.Create) (engine.Created, error) {
	c := req.Spec
	sandbox, err := e.readSandbox(c.Sandbox)
	if err != nil {
		return engine.Created{}, err
	}
	runtime, err := e.runtime(ctx, sandbox.Handler)
	if err != nil {
		return engine.Created{}, err
	}
	r := &containerRecord{Sandbox: c.Sandbox, Runtime: runtime, Handler: sandbox.Handler, UserNS: sandbox.Namespaces.User != "", Restored: req.Restore != nil, Created: engine.Created{
		ID: string(c.Key), StopSignal: req.Image.Config.StopSignal,
	}}
	if r.Created.CgroupPath, err = e.cgroupOf(req, sandbox); err != nil {
		return engine.Created{}, err
	}
	if r.Labels, err = e.labels.Container(c.Key, &c.Security, sandbox.Labels); err != nil {
		return engine.Created{}, err
	}
	// The runtime has its own copies of them once it has created the container.
	defer func() { _ = e.unmapMounts(c.Key) }()
	if req.Restore != nil {
		if err = e.canRestore(ctx, sandbox); err != nil {
			return engine.Created{}, err
		}
	}
	spec, err := e.spec(ctx, req, sandbox, r)
	if err == nil && req.Restore != nil {
		err = restoreProcess(spec, r, req.Restore)
	}
	if err != nil {
		return engine.Created{}, err
	}
	if r.Process, err = json.Marshal(spec.Process); err != nil {
		return engine.Created{}, fmt.Errorf("encode process: %w", err)
	}
	dir := e.containerDir(c.Key)
	if err = writeBundle(dir, spec); err != nil {
		return engine.Created{}, fmt.Errorf("write bundle: %w", err)
	}
	e.opts.Hook("container/bundle written")
	if err = e.containers.put(c.Key, filepath.Join(dir, containerFile), r); err != nil {
		return engine.Created{}, fmt.Errorf("record container: %w", err)
	}
	e.opts.Hook("container/recorded")
	created := r.Created
	ask := &keeper.Create{
		Key: string(c.Key), Runtime: runtime, Bundle: dir, LogPath: guarded(c.LogPath, req.Sandbox.Spec.LogDirectory), CgroupPath: created.CgroupPath,
		Stdin: c.Stdin, StdinOnce: c.StdinOnce, TTY: c.TTY, Restore: restoreImages(req.Restore),
		Bounds: keeper.BoundsOf(c.LogBounds),
	}
	if req.Restore == nil {
		ask.DirectStart, ask.DirectDelete = e.directly(ctx, sandbox.Handler, spec)
	}
	created.Pid, err = e.opts.Keeper.Create(ctx, ask)
	return created, err // the keeper's error says that it is the container's creation, and whose
}

// cgroupOf is the container's cgroup. What a plugin wants must not be there yet: everything in it ends
// with the container.
func (e *Engine) cgroupOf(req *engine.Create, sandbox *sandboxRecord) (string, error) {
	name, err := e.opts.CgroupDriver.FromOCI(e.cgroupsPath(req, sandbox))
	if err != nil {
		return "", err
	}
	if req.Adjust != nil && req.Adjust.CgroupsPath != "" && e.cgroups.Exists(name) {
		return "", fmt.Errorf("NRI adjustment linux.cgroups_path: %s is in use: %w", name, errdefs.ErrInvalidArgument)
	}
	return name, nil
}

// cgroupsPath is where the container's cgroup will be, in the form of an OCI spec.
func (e *Engine) cgroupsPath(req *engine.Create, sandbox *sandboxRecord) string {
	if a := req.Adjust; a != nil && a.CgroupsPath != "" {
		return a.CgroupsPath
	}
	return e.opts.CgroupDriver.OCIPath(sandbox.Cgroup, string(req.Spec.Key))
}

// guarded tells the keeper (keeper.Create.LogPath) to follow no link from the pod's own log directory
// on: a container that has it mounted may have put one there.
func guarded(logPath, logDirectory string) string {
	root := filepath.Dir(filepath.Clean(logDirectory))
	rest, below := strings.CutPrefix(logPath, strings.TrimSuffix(root, "/")+"/")
	if !below || logDirectory == "" {
		return logPath
	}
	return strings.TrimSuffix(root, "/") + "/./" + rest
}

// spec prepares the root file system and builds the OCI spec; the user it finds goes into r.
func (e *Engine) spec(ctx context.Context, req *engine.Create, sandbox *sandboxRecord, r *containerRecord) (*specs.Spec, error) {
	c := req.Spec
	features, err := e.features(ctx, r.Runtime.Path)
	if err != nil {
		return nil, err
	}
	pid, err := e.pidNamespace(req, sandbox)
	if err != nil {
		return nil, err
	}
	// Before the root file system: cheap, and the likeliest of the client's mistakes.
	mounts, err := within(ctx, "look at the sources of mounts", func() ([]pod.Mount, error) { return ocispec.ResolveMounts(c.Mounts) })
	if err != nil {
		return nil, err
	}
	if err = e.relabel(ctx, req, mounts, r.Labels); err != nil {
		return nil, err
	}
	if err = e.mapMounts(c.Key, mounts, sandbox.Namespaces); err != nil {
		return nil, err
	}
	if err = e.mountImages(ctx, image.Mount{Key: string(c.Key), IDs: sandbox.Namespaces, Label: r.Labels.Mount}, mounts); err != nil {
		return nil, err
	}
	devices, err := ocispec.ResolveDevices(c)
	if err != nil {
		return nil, err
	}
	rootfs, err := e.containerRootfs(ctx, req, image.Mount{
		Key: string(c.Key), Image: req.Image.ID, IDs: sandbox.Namespaces, Label: r.Labels.Mount,
	})
	if err != nil {
		return nil, err
	}
	if err = e.completeRootfs(rootfs, req, rootOf(sandbox.Namespaces)); err != nil {
		return nil, err
	}
	user, err := ocispec.FindUser(rootfs, &c.Security, req.Image.User)
	if err != nil {
		return nil, err
	}
	r.Created.User = podUser(user)
	shm := nodeShm
	if sandbox.Namespaces.IPC != "" {
		shm = filepath.Join(e.sandboxDir(c.Sandbox), "shm")
	}
	node := e.node
	node.OCIVersion, node.RecursiveReadOnly = features.OCIVersion, features.RecursiveReadOnly()
	node.AccountsSwap = e.cgroups.AccountsSwap()
	if node.DefaultProfile, err = e.defaultProfile(&c.Security); err != nil {
		return nil, err
	}
	spec, err := ocispec.Build(&ocispec.Request{
		Container: c, Sandbox: &req.Sandbox.Spec, Image: req.Image.Config, Rootfs: rootfs,
		CgroupsPath: e.cgroupsPath(req, sandbox),
		Namespaces: ocispec.Namespaces{
			Net: sandbox.Namespaces.Net, IPC: sandbox.Namespaces.IPC, UTS: sandbox.Namespaces.UTS, PID: pid,
			User: sandbox.Namespaces.User,
		},
		Files: ocispec.Files{
			ResolvConf: req.Files.ResolvConf, Hosts: req.Files.Hosts, Hostname: req.Files.Hostname, Shm: shm,
		},
		User: user, Mounts: mounts, Devices: devices, Node: node,
		ProcessLabel: r.Labels.Process, MountLabel: r.Labels.Mount,
	})
	if err != nil {
		return nil, err
	}
	if features.Name == gvisor {
		ocispec.OwnSandbox(spec)
	}
	if err = e.applyClasses(req, spec, r); err != nil {
		return nil, err
	}
	if err = e.injectCDI(spec, c.CDIDevices); err != nil {
		return nil, err
	}
	return spec, ocispec.Adjust(spec, req.Adjust, &node)
}

// pidNamespace is the path of the PID namespace to join, "" for one of the container's own or the node's.
func (e *Engine) pidNamespace(req *engine.Create, sandbox *sandboxRecord) (string, error) {
	switch req.Spec.Namespaces.PID {
	case pod.NamespacePod:
		if !sandbox.Pause {
			return "", fmt.Errorf("pid namespace %s: the sandbox was not made to share one: %w", pod.NamespacePod, errdefs.ErrInvalidArgument)
		}
		return e.pidPin(req.Spec.Sandbox), nil
	case pod.NamespaceTarget:
		if req.TargetPid > 0 {
			return "/proc/" + strconv.Itoa(req.TargetPid) + "/ns/pid", nil
		}
	}
	return "", nil
}

// completeRootfs makes the directories that need not be in any layer.
func (e *Engine) completeRootfs(rootfs string, req *engine.Create, owner ocispec.Owner) error {
	dirs := slices.Sorted(maps.Keys(req.Image.Config.Volumes))
	work := req.Spec.WorkingDir
	if work == "" {
		work = req.Image.Config.WorkingDir
	}
	return ocispec.MakeDirs(rootfs, owner, append(dirs, work)...)
}

func podUser(u ocispec.User) *engine.User {
	p := &engine.User{UID: int64(u.UID), GID: int64(u.GID)}
	for _, g := range u.Groups {
		p.Groups = append(p.Groups, int64(g))
	}
	return p
}

// StartContainer lets the container's process run. One that runs, or has ended, is left alone.
func (e *Engine) StartContainer(ctx context.Context, key pod.Key) (engine.Started, error) {
	if err := e.opts.Keeper.Start(ctx, string(key)); err != nil {
		return engine.Started{}, err
	}
	r, err := e.readContainer(key)
	if err != nil || !r.Restored {
		return engine.Started{}, absentIsFine(err)
	}
	states, err := e.opts.Keeper.List(ctx)
	if err != nil {
		return engine.Started{}, err
	}
	i := slices.IndexFunc(states, func(s keeper.State) bool { return s.Key == string(key) })
	if i < 0 {
		return engine.Started{}, nil
	}
	return engine.Started{Pid: states[i].Pid}, nil
}

// SignalContainer sends a signal; a container that has ended is no error.
func (e *Engine) SignalContainer(ctx context.Context, key pod.Key, s engine.Signal) error {
	sig, err := s.Number()
	if err != nil {
		return err
	}
	if s.All {
		return e.opts.Keeper.SignalAll(ctx, string(key), sig)
	}
	return e.opts.Keeper.Signal(ctx, string(key), sig)
}

// UpdateContainer applies new limits through the container's runtime.
func (e *Engine) UpdateContainer(ctx context.Context, key pod.Key, limits *pod.Resources) error {
	r, err := e.readContainer(key)
	if err != nil {
		return err
	}
	node := e.node
	node.AccountsSwap = e.cgroups.AccountsSwap()
	resources, err := ocispec.Resources(withoutClasses(limits, &r.Created), &node)
	if err != nil {
		return err
	}
	data, err := json.Marshal(resources)
	if err != nil {
		return fmt.Errorf("encode resources: %w", err)
	}
	return ociruntime.Update(ctx, r.program(), string(key), data)
}

// withoutClasses leaves out the classes that the container has: they are given at its creation and stay.
func withoutClasses(limits *pod.Resources, has *engine.Created) *pod.Resources {
	r := *limits
	if c := r.Extra.BlockIOClass; c != nil && *c == has.BlockIOClass {
		r.Extra.BlockIOClass = nil
	}
	if c := r.Extra.RDTClass; c != nil && *c == has.RDTClass {
		r.Extra.RDTClass = nil
	}
	return &r
}

// RemoveContainer kills what runs and removes everything of the container.
func (e *Engine) RemoveContainer(ctx context.Context, key pod.Key) error {
	if err := e.opts.Keeper.Delete(ctx, string(key)); err != nil {
		return fmt.Errorf("remove container: %w", err)
	}
	e.opts.Hook("container/deleted by the keeper")
	r, err := e.readContainer(key)
	if err == nil {
		// Processes that share the pod's PID namespace outlive the main one.
		if err := e.cgroups.Remove(ctx, r.Created.CgroupPath); err != nil {
			return err
		}
	}
	e.opts.Hook("container/cgroup removed")
	if err := e.releaseRootfs(ctx, key); err != nil {
		return err
	}
	e.opts.Hook("container/rootfs released")
	// What a crash left mounted is the client's and must not be deleted with the directory.
	if err := e.unmapMounts(key); err != nil {
		return fmt.Errorf("remove container: %w", err)
	}
	if err := os.RemoveAll(e.containerDir(key)); err != nil {
		return fmt.Errorf("remove container: %w", err)
	}
	e.containers.gone(key)
	e.labels.Release(key)
	return nil
}

// gvisor is what gVisor's runtime calls itself.
const gvisor = "runsc"

// applyClasses bounds block I/O, cache and memory bandwidth as the classes say that plugins or annotations name.
func (e *Engine) applyClasses(req *engine.Create, spec *specs.Spec, r *containerRecord) error {
	found, err := e.opts.Classes.Apply(&resclass.Container{
		Name: req.Spec.Name, Annotations: req.Spec.Annotations, PodAnnotations: req.Sandbox.Spec.Annotations,
		HasIO:   e.cgroups.Has("io") || e.cgroups.Has("blkio"),
		BlockIO: req.Spec.Resources.Extra.BlockIOClass, RDT: req.Spec.Resources.Extra.RDTClass,
	}, spec.Linux)
	r.Created.BlockIOClass, r.Created.RDTClass = found.BlockIO, found.RDT
	return err
}
