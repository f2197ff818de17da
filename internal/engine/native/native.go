// Package native is the engine that runs containers with nothing but gantry's own keeper and an OCI
// runtime. Namespaces of a pod are pinned by bind mounts; a pause process exists only where a pod
// shares one PID namespace.
//
// Below its state directory the engine has
//
//	sandboxes/<key>/    sandbox.json, pinned namespaces (ipc, uts, pid), shm, the pause container's bundle
//	containers/<key>/   the bundle: config.json, and container.json with what later calls need
//	runtimes/<name>/    the OCI runtime's own state
//
// A directory is made before anything else of its key and removed after everything else, so what a
// crash left is found by listing directories. Calls for one key must not overlap; lifecycle's key
// locks see to that.
package native

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"gantry/internal/cgroup"
	"gantry/internal/engine"
	"gantry/internal/image"
	"gantry/internal/keeper"
	"gantry/internal/netns"
	"gantry/internal/ociruntime"
	"gantry/internal/ocispec"
	"gantry/internal/pod"
	"gantry/internal/resclass"
	"gantry/internal/selabel"
)

// Keeper is what the engine needs of gantry-keeper: the processes of containers.
type Keeper interface {
	Create(ctx context.Context, req *keeper.Create) (pid int, err error)
	Start(ctx context.Context, key string) error
	Signal(ctx context.Context, key string, sig syscall.Signal) error
	SignalAll(ctx context.Context, key string, sig syscall.Signal) error
	// Delete kills what runs and removes what the OCI runtime keeps of the container; absent is no error.
	Delete(ctx context.Context, key string) error
	KeeperStreams
	KeeperObserver
}

// KeeperStreams are the streams of processes in containers.
type KeeperStreams interface {
	Exec(ctx context.Context, req *keeper.Exec) (*keeper.Session, error)
	Attach(ctx context.Context, req *keeper.Attach) (*keeper.Session, error)
}

// KeeperObserver tells what the keeper has and what happens.
type KeeperObserver interface {
	Ping(ctx context.Context) error
	List(ctx context.Context) ([]keeper.State, error)
	Watch(ctx context.Context) (<-chan keeper.Event, error)
}

// Rootfs makes root file systems and volumes of images.
type Rootfs interface {
	Prepare(ctx context.Context, m image.Mount) (path string, err error)
	// MapsIDs says whether Prepare can map ids as the user namespace does that is pinned at userns.
	MapsIDs(userns string) error
	// Release removes what Prepare made; absent is no error.
	Release(ctx context.Context, key string) error
	Prepared(ctx context.Context) (keys []string, err error)
}

// Changes are what containers have changed in the root file systems of their images.
type Changes interface {
	// Diff writes them as a tar, and returns what was deleted.
	Diff(ctx context.Context, key string, w io.Writer) (deleted []string, err error)
	// PrepareFrom is Prepare with what Diff gave for another container.
	PrepareFrom(ctx context.Context, m image.Mount, diff io.Reader, deleted []string) (path string, err error)
}

// Options are what the engine is made of. All are needed but Changes, Classes, Labels, CgroupRoot, CDISpecDirs, Hook and Runtimes' Args.
type Options struct {
	Keeper Keeper
	Rootfs Rootfs
	// Changes are those of the root file systems that Rootfs makes; nil where nothing is checkpointed.
	Changes Changes
	// Classes are those of block I/O and RDT; nil refuses them.
	Classes *resclass.Classes
	// Labels are those of SELinux that the node's policy has; the zero value is none.
	Labels selabel.Policy
	// Runtimes are the OCI runtimes by handler; Args are global arguments of the operator's.
	Runtimes       map[string]ociruntime.Runtime
	DefaultRuntime string // the handler of pods that name none
	StateDir       string // the engine's own; forgotten by a reboot
	NetNSDir       string // where network namespaces are pinned, such as /var/run/netns
	CgroupRoot     string // "" is cgroup.DefaultRoot
	CgroupDriver   cgroup.Driver
	// PauseBinary is a static program that, called as "pause", reaps children until SIGTERM.
	PauseBinary string
	// CDISpecDirs hold what vendors say about their devices; nil is cdi.DefaultSpecDirs.
	CDISpecDirs []string
	// Hook, if set, is called after every part of a sandbox or container that is made or removed, with
	// its name. One that does not return is a crash there.
	Hook func(point string)
}

// Engine is the native engine.
type Engine struct {
	opts    Options // runtimes are in handlers
	cgroups *cgroup.FS
	node    ocispec.Node // without what the runtime decides

	handlers atomic.Pointer[handlers]

	mu     sync.Mutex
	probed map[string]probe // by binary; guarded by mu

	// sharing is held while a cgroup that the client named is removed or becomes another sandbox's.
	sharing sync.Mutex

	sandboxes  records[sandboxRecord] // by cgroup; all were read once
	containers records[containerRecord]

	ids     claims
	labels  *selabel.Book
	mapsIDs func() error // why pods can have no user namespaces here
}

var _ engine.Engine = (*Engine)(nil)

// probe is what a runtime's binary said, valid while the file is the same.
type probe struct {
	file     os.FileInfo
	features *ociruntime.Features
}

// undoTime bounds the undoing of a failed step, which the caller cannot cancel.
const undoTime = 30 * time.Second

// New returns the engine. It starts no process: a runtime that is missing shows in Status and when a
// pod asks for it.
func New(o Options) (*Engine, error) {
	if o.Hook == nil {
		o.Hook = func(string) {}
	}
	if o.CgroupRoot == "" {
		o.CgroupRoot = cgroup.DefaultRoot
	}
	if o.CDISpecDirs == nil {
		o.CDISpecDirs = cdi.DefaultSpecDirs
	}
	if o.Classes == nil {
		o.Classes = new(resclass.Classes)
	}
	cgroups, err := cgroup.Open(o.CgroupRoot)
	if err != nil {
		return nil, err
	}
	e := &Engine{opts: o, cgroups: cgroups, probed: make(map[string]probe), labels: selabel.New(o.Labels)}
	e.sandboxes.by = func(r *sandboxRecord) string { return r.Cgroup }
	if err = e.SetRuntimes(o.Runtimes, o.DefaultRuntime); err != nil {
		return nil, err
	}
	if e.node, err = ocispec.NodeFacts(); err != nil {
		return nil, err
	}
	e.node.CgroupV2 = cgroups.Mode() == cgroup.V2
	e.node.SystemdCgroup = o.CgroupDriver == cgroup.Systemd
	e.node.LimitsHugepages = cgroups.Has("hugetlb")
	for _, dir := range []string{e.sandboxDir(""), e.containerDir("")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("state of the native engine: %w", err)
		}
	}
	e.mapsIDs = settled(e.tryUserNamespace)
	if err := errors.Join(e.readClaims(), e.recoverLabels()); err != nil {
		return nil, err
	}
	return e, netns.Share(o.NetNSDir)
}

// Status checks the default runtime's binary, asks the keeper, and checks that the runtime accepts
// the node's cgroups.
func (e *Engine) Status(ctx context.Context) error {
	r := e.handlers.Load().standard()
	if err := ociruntime.Check(r.Path); err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	}
	if err := e.opts.Keeper.Ping(ctx); err != nil { // what its containers are is not asked: there may be many
		return fmt.Errorf("keeper: %w", err)
	}
	return e.runsHere(ctx, r)
}

// runsHere says why the default runtime cannot run on this node's cgroups. crun refuses v1 with v2
// beside it; no container would start.
func (e *Engine) runsHere(ctx context.Context, r ociruntime.Runtime) error {
	if e.cgroups.Mode() != cgroup.Hybrid {
		return nil
	}
	f, err := e.features(ctx, r.Path)
	if err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	}
	if f.Name == "crun" {
		return fmt.Errorf("crun refuses cgroup v1 with v2 beside it at %s/unified (hybrid), gantry doctor tells the way out: %w",
			e.opts.CgroupRoot, errdefs.ErrUnavailable)
	}
	return nil
}

// features asks the binary what it can do, again when the file was replaced.
func (e *Engine) features(ctx context.Context, path string) (*ociruntime.Features, error) {
	if err := ociruntime.Check(path); err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	}
	file, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	}
	e.mu.Lock()
	p, ok := e.probed[path]
	e.mu.Unlock()
	if ok && os.SameFile(p.file, file) && p.file.ModTime().Equal(file.ModTime()) {
		return p.features, nil
	}
	f, err := ociruntime.Probe(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	}
	e.mu.Lock()
	e.probed[path] = probe{file, f}
	e.mu.Unlock()
	return f, nil
}

func (e *Engine) sandboxDir(key pod.Key) string {
	return filepath.Join(e.opts.StateDir, "sandboxes", string(key))
}

func (e *Engine) containerDir(key pod.Key) string {
	return filepath.Join(e.opts.StateDir, "containers", string(key))
}

// namespaces are where the namespaces of a sandbox are pinned.
func (e *Engine) namespaces(spec *pod.SandboxSpec) netns.Spec {
	dir := e.sandboxDir(spec.Key)
	s := netns.Spec{Hostname: spec.Hostname, Sysctls: spec.Sysctls}
	if !spec.HostNetwork() {
		s.Net = filepath.Join(e.opts.NetNSDir, "gantry-"+string(spec.Key))
		s.UTS = filepath.Join(dir, "uts")
	}
	if spec.Namespaces.IPC != pod.NamespaceNode {
		s.IPC = filepath.Join(dir, "ipc")
	}
	if u := spec.Namespaces.User; u != nil {
		s.User, s.UIDs, s.GIDs = filepath.Join(dir, userPin), u.UIDs, u.GIDs
	}
	return s
}

// undo runs a removal after a failure, out of the caller's reach, and adds what it could not remove
// to the error.
func undo(ctx context.Context, err error, remove func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	return errors.Join(err, remove(ctx))
}

// absentIsFine is for undoing what was never done.
func absentIsFine(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
