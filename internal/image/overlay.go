package image

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// mount mounts the layers, lowest first, with the writable layer in dir, at dir/rootfs.
func (s *Store) mount(dir string, layers []layerRecord) error {
	lowers := make([]string, 0, len(layers)+1)
	for i := range layers { // overlayfs wants the uppermost first
		lowers = append(lowers, layers[len(layers)-1-i].Name)
	}
	err := s.mountByDescriptor(dir, lowers)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		err = s.mountByOptions(dir, lowers)
	}
	if err != nil {
		return fmt.Errorf("mount overlay of %d layers: %w", len(layers), err)
	}
	return nil
}

// mountByDescriptor uses the mount interface that takes one layer at a time (Linux 6.7 and later), so
// that their number and the length of their names do not matter.
func (s *Store) mountByDescriptor(dir string, lowers []string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fs) }()
	set := func(key, value string) {
		if err == nil {
			err = unix.FsconfigSetString(fs, key, value)
		}
	}
	set("source", "overlay")
	for _, l := range lowers {
		set("lowerdir+", s.layerPath(l))
	}
	if len(lowers) == 0 {
		set("lowerdir+", filepath.Join(dir, "empty"))
	}
	set("upperdir", filepath.Join(dir, "upper"))
	set("workdir", filepath.Join(dir, "work"))
	if err != nil {
		return err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return err
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(mnt) }()
	return unix.MoveMount(mnt, "", unix.AT_FDCWD, filepath.Join(dir, "rootfs"), unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// mountByOptions uses mount(2), whose options must fit in one page: the layers are named relative to
// their directory, from a thread that has a working directory of its own and ends with it.
func (s *Store) mountByOptions(dir string, lowers []string) error {
	options := []string{
		"lowerdir=" + strings.Join(lowers, ":"),
		"upperdir=" + escape(filepath.Join(dir, "upper")),
		"workdir=" + escape(filepath.Join(dir, "work")),
	}
	if len(lowers) == 0 {
		options[0] = "lowerdir=" + escape(filepath.Join(dir, "empty"))
	}
	data := strings.Join(options, ",")
	if len(data) >= unix.Getpagesize() {
		return fmt.Errorf("%d layers do not fit in the mount options of this kernel: %w", len(lowers), unix.E2BIG)
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread cannot be given back
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			result <- err
			return
		}
		if err := unix.Chdir(s.dir(layersDir)); err != nil {
			result <- err
			return
		}
		result <- unix.Mount("overlay", filepath.Join(dir, "rootfs"), "overlay", 0, data)
	}()
	return <-result
}

// escape quotes what has a meaning in overlayfs's options.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace(path)
}
