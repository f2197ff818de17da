package ocispec

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Owner is whom a file belongs to, in the node's ids.
type Owner struct{ UID, GID int }

// MakeDirs makes directories in a root file system where they are missing: an image's volumes and
// the working directory need not be in any layer. A volume that the client does not mount over is
// part of the container's writable layer. They belong to owner. Links in rootfs never lead outside it.
func MakeDirs(rootfs string, owner Owner, dirs ...string) error {
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: rootfs, Err: err}
	}
	defer func() { _ = unix.Close(root) }()
	for _, dir := range dirs {
		if err := makeDir(root, owner, path.Join("/", dir)); err != nil {
			return fmt.Errorf("make %s in the root file system: %w", dir, err)
		}
	}
	return nil
}

func makeDir(root int, owner Owner, dir string) error {
	if fd, err := openDir(root, dir); !errors.Is(err, unix.ENOENT) {
		if err == nil {
			_ = unix.Close(fd)
		}
		return err
	}
	parent := "/"
	for name := range strings.SplitSeq(dir[1:], "/") {
		if err := makeEntry(root, owner, parent, name); err != nil {
			return err
		}
		parent = path.Join(parent, name)
	}
	return nil
}

func makeEntry(root int, owner Owner, parent, name string) error {
	fd, err := openDir(root, parent)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Mkdirat(fd, name, 0o755); errors.Is(err, unix.EEXIST) {
		return nil
	} else if err != nil {
		return err
	}
	return unix.Fchownat(fd, name, owner.UID, owner.GID, unix.AT_SYMLINK_NOFOLLOW)
}

// Below returns the path of name in a root file system, with links resolved as a process inside would
// see them. What is not there is errdefs.ErrInvalidArgument.
func Below(rootfs, name string) (string, error) {
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: rootfs, Err: err}
	}
	defer func() { _ = unix.Close(root) }()
	fd, err := unix.Openat2(root, path.Join("/", name), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return "", fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}

func openDir(root int, dir string) (int, error) {
	return unix.Openat2(root, dir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}
