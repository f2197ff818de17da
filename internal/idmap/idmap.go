// Package idmap mounts a tree of files once more, with the ids of its files mapped as a user namespace
// says (mount_setattr(2), Linux 5.12 and later).
package idmap

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Mount mounts source, with all that is mounted below it, at target, which exists and is a directory
// or a file as source is. The id n inside the user namespace pinned at userns is what n owns in source
// itself. A kernel or a file system that cannot do it is errdefs.ErrNotImplemented.
func Mount(source, target, userns string) error {
	if err := mount(source, target, userns); err != nil {
		return fmt.Errorf("mount %s with mapped ids: %w", source, err)
	}
	return nil
}

func mount(source, target, userns string) error {
	tree, err := mapped(source, userns)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(tree) }()
	return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// Check says whether source could be mounted so, as Mount would.
func Check(source, userns string) error {
	tree, err := mapped(source, userns)
	if err != nil {
		return fmt.Errorf("map the ids of %s: %w", source, err)
	}
	return unix.Close(tree)
}

// mapped returns a view of source that is mounted nowhere.
func mapped(source, userns string) (int, error) {
	ns, err := os.Open(userns)
	if err != nil {
		return -1, err
	}
	defer ns.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, unsupported(err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		_ = unix.Close(tree)
		return -1, unsupported(err)
	}
	return tree, nil
}

// unsupported classifies what the kernel says when it, or the file system, has no mapped mounts.
func unsupported(err error) error {
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("the kernel or the file system cannot: %w: %w", errdefs.ErrNotImplemented, err)
	}
	return err
}
