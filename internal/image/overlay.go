package image

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// mount mounts the layers, lowest first, with the writable layer of the container key, at the
// container's rootfs. All paths are given relative to the layers' directory, from a thread that has a
// working directory of its own: neither the root's length nor the characters in it matter.
func (s *Store) mount(key string, layers []layerRecord) error {
	m := overlay{dir: filepath.Join("..", containersDir, key)}
	for i := range layers { // overlayfs wants the uppermost first
		m.lowers = append(m.lowers, layers[len(layers)-1-i].Name)
	}
	if len(layers) == 0 {
		m.lowers = []string{filepath.Join(m.dir, "empty")}
	}
	if err := mountIn(s.dir(layersDir), m.mount); err != nil {
		return fmt.Errorf("mount overlay of %d layers: %w", len(layers), err)
	}
	return nil
}

// mountIn runs mount on a thread whose working directory is dir.
func mountIn(dir string, mount func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread cannot be given back
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Chdir(dir)
		}
		if err == nil {
			err = mount()
		}
		result <- err
	}()
	return <-result
}

// overlay is a mount to be made; its paths are relative to the working directory.
type overlay struct {
	lowers []string // the uppermost first
	dir    string   // of the container
}

func (m *overlay) mount() error {
	err := m.mountByDescriptor()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return m.mountByOptions()
	}
	return err
}

// mountByDescriptor uses the mount interface that takes one layer at a time (Linux 6.7 and later), so
// that their number does not matter.
func (m *overlay) mountByDescriptor() error {
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
	for _, l := range m.lowers {
		set("lowerdir+", l)
	}
	set("upperdir", filepath.Join(m.dir, "upper"))
	set("workdir", filepath.Join(m.dir, "work"))
	if err != nil {
		return err
	}
	if err = unix.FsconfigCreate(fs); err != nil {
		return err
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(mnt) }()
	return unix.MoveMount(mnt, "", unix.AT_FDCWD, filepath.Join(m.dir, "rootfs"), unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// mountByOptions uses mount(2), whose options must fit in one page.
func (m *overlay) mountByOptions() error {
	quote := strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace
	lowers := make([]string, len(m.lowers))
	for i, l := range m.lowers {
		lowers[i] = quote(l)
	}
	data := strings.Join([]string{
		"lowerdir=" + strings.Join(lowers, ":"),
		"upperdir=" + quote(filepath.Join(m.dir, "upper")),
		"workdir=" + quote(filepath.Join(m.dir, "work")),
	}, ",")
	if len(data) >= unix.Getpagesize() {
		return fmt.Errorf("%d layers do not fit in the mount options of this kernel: %w", len(lowers), unix.E2BIG)
	}
	return unix.Mount("overlay", filepath.Join(m.dir, "rootfs"), "overlay", 0, data)
}
