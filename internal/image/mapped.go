package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/idmap"
	"gantry/internal/netns"
)

// viewDir is where a container's directory has a view of the layers with mapped ids, while its root
// file system is being mounted.
const viewDir = "view"

// MapsIDs says whether the layers can be shown with the ids of the user namespace pinned at userns.
func (s *Store) MapsIDs(userns string) error { return idmap.Check(s.dir(layersDir), userns) }

// mountMapped mounts the layers over a view of them with mapped ids; overlayfs keeps that view, so it
// need not stay. What the container writes belongs to its ids on the node and is not mapped.
func (s *Store) mountMapped(of *Mount, info *rootInfo) (err error) {
	dir, ns := s.containerDir(of.Key), of.IDs
	if err = chownMapped(filepath.Join(dir, "upper"), ns); err != nil {
		return err
	}
	// Root inside must reach the root file system; nobody else need.
	root, _ := netns.HostID(ns.GIDs, 0)
	if err = errors.Join(os.Lchown(dir, 0, int(root)), os.Chmod(dir, 0o710)); err != nil {
		return err
	}
	view := filepath.Join(dir, viewDir)
	if err = os.MkdirAll(view, 0o755); err != nil {
		return err
	}
	if err = idmap.Mount(s.dir(layersDir), view, ns.User); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmountAll(view)) }()
	s.opts.Hook("rootfs/view mounted")
	m := newOverlay("..", info, of.Label)
	if err = mountIn(view, m.mount); err != nil {
		return fmt.Errorf("mount overlay of %d layers with mapped ids: %w", len(info.Layers), err)
	}
	return nil
}

// chownMapped gives path to the node's ids of its owner's.
func chownMapped(path string, ns netns.Spec) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	uid, ok := netns.HostID(ns.UIDs, st.Uid)
	gid, known := netns.HostID(ns.GIDs, st.Gid)
	if !ok || !known {
		return fmt.Errorf("the image's root directory belongs to %d:%d, which the user namespace has not: %w",
			st.Uid, st.Gid, errdefs.ErrInvalidArgument)
	}
	return os.Lchown(path, int(uid), int(gid))
}
