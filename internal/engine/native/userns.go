package native

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/idmap"
	"gantry/internal/netns"
	"gantry/internal/ocispec"
	"gantry/internal/pod"
)

// A pod with a user namespace has one of its own, pinned like the others, which it owns. The layers of
// its images and the mounts that say so are shown to it with mapped ids; nothing is copied.

const (
	userPin   = "user"   // of a sandbox
	mountsDir = "mounts" // of a container: the client's mounts with mapped ids, while it is being created
)

// checkUser refuses what cannot work: the kernel gives the root of a user namespace no rights in the
// node's namespaces.
func checkUser(n *pod.Namespaces) error {
	if n.User == nil {
		return nil
	}
	for what, mode := range map[string]pod.NamespaceMode{"network": n.Network, "ipc": n.IPC, "pid": n.PID} {
		if mode == pod.NamespaceNode {
			return fmt.Errorf("userns_options: not together with the node's %s namespace: %w", what, errdefs.ErrInvalidArgument)
		}
	}
	_, uid := netns.HostID(n.User.UIDs, 0)
	_, gid := netns.HostID(n.User.GIDs, 0)
	if !uid || !gid {
		return fmt.Errorf("userns_options: the ids 0 are not mapped: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// claims are the ids of the node that pods with user namespaces have: no two share one.
type claims struct {
	mu   sync.Mutex
	made map[pod.Key]netns.Spec // guarded by mu
}

// claim takes the ids of ns for a sandbox, which may have them already.
func (c *claims) claim(key pod.Key, ns netns.Spec) error {
	if ns.User == "" {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for other, has := range c.made {
		if other != key && (overlap(has.UIDs, ns.UIDs) || overlap(has.GIDs, ns.GIDs)) {
			return fmt.Errorf("userns_options: ids that pod sandbox %s has: %w", other.Short(), errdefs.ErrFailedPrecondition)
		}
	}
	c.made[key] = ns
	return nil
}

func (c *claims) release(key pod.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.made, key)
}

func overlap(a, b []pod.IDMapping) bool {
	for _, x := range a {
		for _, y := range b {
			if uint64(x.HostID) < uint64(y.HostID)+uint64(y.Length) && uint64(y.HostID) < uint64(x.HostID)+uint64(x.Length) {
				return true
			}
		}
	}
	return false
}

// readClaims reads the records of the sandboxes that an earlier server made, and finds the ids of each. One whose namespaces are gone
// has none; a record that cannot be read is undone by whoever finds it in the inventory.
func (e *Engine) readClaims() error {
	all, err := keys(e.sandboxDir(""))
	if err != nil {
		return err
	}
	made := make(map[pod.Key]netns.Spec)
	for _, key := range all {
		if r, err := e.readSandbox(key); err == nil && netns.IsPinned(r.Namespaces.User) {
			made[key] = r.Namespaces
		}
	}
	e.ids.made = made
	return nil
}

// mapsFor refuses a user namespace before anything of the pod is made where its containers could not run:
// the runtime has none, or the kernel maps no ids in the file system of the layers.
func (e *Engine) mapsFor(ctx context.Context, spec *pod.SandboxSpec) error {
	if spec.Namespaces.User == nil {
		return nil
	}
	r, err := e.runtime(ctx, spec.Handler)
	if err != nil {
		return err
	}
	f, err := e.features(ctx, r.Path)
	if err != nil {
		return err
	}
	if !f.UserNamespaces {
		return fmt.Errorf("userns_options: the OCI runtime %s has no user namespaces: %w", f.Name, errdefs.ErrNotImplemented)
	}
	if err := e.mapsIDs(); err != nil {
		return fmt.Errorf("userns_options: %w: %w", errdefs.ErrNotImplemented, err)
	}
	return nil
}

// settled asks try until it has an answer that stays: that it can be done, or that this kernel or file system does not. A node
// that was out of memory, of descriptors or of namespaces may have them again.
func settled(try func() error) func() error {
	var mu sync.Mutex
	var stays bool // guarded by mu
	var said error // guarded by mu
	return func() error {
		mu.Lock()
		defer mu.Unlock()
		if !stays {
			said = try()
			stays = said == nil || errdefs.IsNotImplemented(said)
		}
		return said
	}
}

// tryUserNamespace makes a user namespace and maps the layers' ids with it.
func (e *Engine) tryUserNamespace() error {
	ids := []pod.IDMapping{{HostID: 1 << 16, Length: 1 << 16}}
	ns := netns.Spec{User: filepath.Join(e.opts.StateDir, "userns-trial"), UIDs: ids, GIDs: ids}
	if err := netns.Create(ns); err != nil {
		return err
	}
	err := e.opts.Rootfs.MapsIDs(ns.User)
	return errors.Join(err, netns.Remove(ns))
}

// rootOf is root of the sandbox on the node.
func rootOf(ns netns.Spec) ocispec.Owner {
	if ns.User == "" {
		return ocispec.Owner{}
	}
	uid, _ := netns.HostID(ns.UIDs, 0) // checkUser saw to it
	gid, _ := netns.HostID(ns.GIDs, 0)
	return ocispec.Owner{UID: int(uid), GID: int(gid)}
}

// mapMounts mounts the sources that are to have mapped ids in the container's directory and makes
// mounts name them there.
func (e *Engine) mapMounts(key pod.Key, mounts []pod.Mount, ns netns.Spec) error {
	for i := range mounts {
		m := &mounts[i]
		if len(m.UIDs) == 0 && len(m.GIDs) == 0 {
			continue
		}
		if !reflect.DeepEqual(m.UIDs, ns.UIDs) || !reflect.DeepEqual(m.GIDs, ns.GIDs) {
			return fmt.Errorf("mount %s: uidMappings and gidMappings: not those of the pod: %w", m.ContainerPath, errdefs.ErrInvalidArgument)
		}
		target := filepath.Join(e.containerDir(key), mountsDir, strconv.Itoa(i))
		if err := mountPoint(m.HostPath, target); err != nil {
			return fmt.Errorf("mount %s: %w", m.ContainerPath, err)
		}
		if err := idmap.Mount(m.HostPath, target, ns.User); err != nil {
			return fmt.Errorf("mount %s: uidMappings: %w", m.ContainerPath, err)
		}
		m.HostPath, m.UIDs, m.GIDs = target, nil, nil
	}
	return nil
}

// mountPoint makes target what source is: a directory, or a file.
func mountPoint(source, target string) error {
	st, err := os.Stat(source)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o711); err != nil {
		return err
	}
	if st.IsDir() {
		return os.Mkdir(target, 0o711)
	}
	return os.WriteFile(target, nil, 0o600)
}

// unmapMounts undoes mapMounts; where it did nothing, this does nothing.
func (e *Engine) unmapMounts(key pod.Key) error {
	dir := filepath.Join(e.containerDir(key), mountsDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		target := filepath.Join(dir, entry.Name())
		if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
		if err := os.Remove(target); err != nil {
			return err
		}
	}
	return os.Remove(dir)
}
