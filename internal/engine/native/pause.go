package native

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/keeper"
	"gantry/internal/netns"
	"gantry/internal/ocispec"
	"gantry/internal/pod"
)

// The pause process is the init of a PID namespace that the containers of a pod share. It runs as
// nobody, with no right at all, in a root file system that holds nothing but its program.
const (
	pauseSuffix = ".pause"
	pauseUser   = 65535
)

func pauseKey(key pod.Key) string { return string(key) + pauseSuffix }

// pidPin is where the shared PID namespace is pinned: a path by pid could mean another process by now.
func (e *Engine) pidPin(key pod.Key) string { return filepath.Join(e.sandboxDir(key), "pid") }

func (e *Engine) startPause(ctx context.Context, key pod.Key, r *sandboxRecord) error {
	runtime, err := e.runtime(ctx, r.Handler)
	if err != nil {
		return err
	}
	features, err := e.features(ctx, runtime.Path)
	if err != nil {
		return err
	}
	bundle := filepath.Join(e.sandboxDir(key), "pause")
	root := filepath.Join(bundle, "rootfs")
	for _, dir := range []string{"proc", "dev"} {
		if err = os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return fmt.Errorf("pause: %w", err)
		}
	}
	if err = os.WriteFile(filepath.Join(root, "pause"), nil, 0o755); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	spec := e.pauseSpec(key, r)
	spec.Version = features.OCIVersion
	if err = writeBundle(bundle, spec); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	ask := &keeper.Create{
		Key: pauseKey(key), Runtime: runtime, Bundle: bundle,
		CgroupPath: e.opts.CgroupDriver.Container(r.Cgroup, pauseKey(key)),
	}
	ask.DirectStart, ask.DirectDelete = e.directly(ctx, r.Handler, spec)
	pid, err := e.opts.Keeper.Create(ctx, ask)
	if err != nil {
		return fmt.Errorf("create pause process: %w", err)
	}
	if err := e.opts.Keeper.Start(ctx, pauseKey(key)); err != nil {
		return fmt.Errorf("start pause process: %w", err)
	}
	return netns.Pin("/proc/"+strconv.Itoa(pid)+"/ns/pid", e.pidPin(key))
}

func (e *Engine) pauseSpec(key pod.Key, r *sandboxRecord) *specs.Spec {
	score := e.node.OOMScoreAdj
	spec := &specs.Spec{
		Process: &specs.Process{
			User: specs.User{UID: pauseUser, GID: pauseUser},
			Args: []string{"/pause", "pause"}, Cwd: "/",
			NoNewPrivileges: true, Capabilities: &specs.LinuxCapabilities{}, OOMScoreAdj: &score,
		},
		Root: &specs.Root{Path: "rootfs", Readonly: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=64k"}},
			{Destination: "/pause", Type: "bind", Source: e.opts.PauseBinary, Options: []string{"bind", "ro", "nosuid", "nodev"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: e.opts.CgroupDriver.OCIPath(r.Cgroup, pauseKey(key)),
			Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}},
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
	if r.Namespaces.User != "" {
		spec.Linux.UIDMappings = ocispec.IDMappings(r.Namespaces.UIDs)
		spec.Linux.GIDMappings = ocispec.IDMappings(r.Namespaces.GIDs)
	}
	for kind, path := range map[specs.LinuxNamespaceType]string{
		specs.UserNamespace: r.Namespaces.User, specs.NetworkNamespace: r.Namespaces.Net, specs.IPCNamespace: r.Namespaces.IPC, specs.UTSNamespace: r.Namespaces.UTS,
	} {
		if path != "" {
			spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
		}
	}
	return spec
}

func (e *Engine) endPause(ctx context.Context, key pod.Key, r *sandboxRecord) error {
	if err := netns.Unpin(e.pidPin(key)); err != nil {
		return err
	}
	if err := e.opts.Keeper.Delete(ctx, pauseKey(key)); err != nil {
		return fmt.Errorf("end pause process: %w", err)
	}
	return e.cgroups.Remove(ctx, e.opts.CgroupDriver.Container(r.Cgroup, pauseKey(key)))
}

func pauseRuns(states []keeper.State, key pod.Key) bool {
	for _, s := range states {
		if s.Key == pauseKey(key) {
			return s.Phase == phaseRunning
		}
	}
	return false
}
