package fsck

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mounts finds mounts below the server's directories that are a pod's or container's.
func (f *finder) mounts() error {
	all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !below(m.Mountpoint, f.opts.Root) && !below(m.Mountpoint, f.opts.State), false
	})
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	for _, m := range all {
		if key := keyIn(m.Mountpoint); key != "" {
			f.orphan(Orphan{Kind: Mount, Path: m.Mountpoint, Was: of(m.FSType, key), remove: func() error { return unmount(m.Mountpoint) }}, key)
		}
	}
	return nil
}

func below(path, dir string) bool { return strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/") }

func unmount(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount: %w", err)
	}
	return nil
}

// removeUnmounted removes a directory, unless something is mounted below it: removing would reach into
// the mount.
func removeUnmounted(dir string) error {
	in, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	if len(in) > 0 {
		return fmt.Errorf("%s is mounted below it: %w", in[0].Mountpoint, errdefs.ErrFailedPrecondition)
	}
	return os.RemoveAll(dir)
}

// namespaces finds pinned network namespaces.
func (f *finder) namespaces() error {
	list, err := entries(f.opts.NetNSDir)
	if err != nil {
		return err
	}
	for _, e := range list {
		key, ok := strings.CutPrefix(e.Name(), "gantry-")
		if !ok || keyIn(key) != key || !f.ours(key) {
			continue
		}
		path := filepath.Join(f.opts.NetNSDir, e.Name())
		f.orphan(Orphan{Kind: Namespace, Path: path, Was: of("network", key), remove: func() error {
			return errors.Join(unmount(path), os.Remove(path))
		}}, key)
	}
	return nil
}

// leases finds addresses that the builtin network has given out, and what it remembers of their pods.
func (f *finder) leases() error {
	files, err := filepath.Glob(filepath.Join(f.opts.State, "bridge", "*", "leases", "*"))
	if err != nil {
		return err
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if lines := strings.Split(string(data), "\n"); len(lines) > 1 {
			key := keyIn(lines[1])
			if key == "" {
				continue
			}
			f.orphan(Orphan{Kind: Lease, Path: file, Was: of("address "+filepath.Base(file), key), remove: func() error { return os.Remove(file) }}, key)
		}
	}
	return nil
}

// cgroups finds those that gantry named: <key> in /gantry, or gantry-<key>.scope and .slice anywhere.
// A bare key elsewhere may be another runtime's.
func (f *finder) cgroups() error {
	return filepath.WalkDir(f.opts.Cgroups, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil
			}
			return err
		}
		if !d.IsDir() {
			return nil
		}
		key := keyIn(d.Name())
		if key == "" {
			return nil
		}
		if !strings.HasPrefix(d.Name(), "gantry-") && !strings.Contains(path, "/gantry/") {
			return nil
		}
		// a container's lies in its pod's
		if !f.ours(key, keyIn(filepath.Base(filepath.Dir(path)))) || !isCgroup(path) {
			return nil
		}
		f.orphan(Orphan{Kind: Cgroup, Path: path, Was: of("cgroup", key), remove: func() error { return removeCgroup(path) }}, key)
		return nil
	})
}

// isCgroup tells cgroups from directories below an unmounted hierarchy.
func isCgroup(path string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(path, &fs) == nil && (fs.Type == unix.CGROUP_SUPER_MAGIC || fs.Type == unix.CGROUP2_SUPER_MAGIC)
}

// removeCgroup removes a cgroup and those in it. One in which something runs stays: what that is, a
// person must say.
func removeCgroup(path string) error {
	var dirs []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		err := unix.Rmdir(dirs[i])
		if errors.Is(err, unix.EBUSY) {
			pids, _ := os.ReadFile(filepath.Join(dirs[i], "cgroup.procs"))
			return fmt.Errorf("%d processes run in it: %w", len(strings.Fields(string(pids))), errdefs.ErrFailedPrecondition)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "rmdir", Path: dirs[i], Err: err}
		}
	}
	return nil
}
