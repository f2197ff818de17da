package image

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mount mounts the layers of the container at its rootfs, with its writable layer if it has one. All
// paths are given relative to the layers' directory, from a thread that has a working directory of its
// own: neither the root's length nor the characters in it matter.
func (s *Store) mount(of *Mount, info *rootInfo) error {
	m := newOverlay(filepath.Join("..", containersDir, of.Key), info, of.Label)
	if err := mountIn(s.dir(layersDir), m.mount); err != nil {
		return fmt.Errorf("mount overlay of %d layers: %w", len(info.Layers), err)
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
	// readOnly says that nothing may be written: "upper" is then the uppermost of the lowers.
	readOnly bool
	label    string // of SELinux; "" is the files' own
}

func newOverlay(dir string, info *rootInfo, label string) *overlay {
	m := &overlay{dir: dir, readOnly: info.Volume, label: label}
	if m.readOnly {
		m.lowers = append(m.lowers, filepath.Join(dir, "upper"))
	}
	for _, l := range slices.Backward(info.Layers) {
		m.lowers = append(m.lowers, l.Name)
	}
	if len(info.Layers) == 0 {
		m.lowers = append(m.lowers, filepath.Join(dir, "empty"))
	}
	return m
}

// mount uses mount(2) while it can: a kernel without the other interface writes an error into its log
// each time that it is tried.
func (m *overlay) mount() error {
	tooMany := m.mountByOptions()
	if !errors.Is(tooMany, unix.E2BIG) {
		return tooMany
	}
	err := m.mountByDescriptor()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return tooMany
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
	if !m.readOnly {
		set("upperdir", filepath.Join(m.dir, "upper"))
		set("workdir", filepath.Join(m.dir, "work"))
	}
	if m.label != "" {
		set("context", m.label)
	}
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
	data := m.options()
	if len(data) >= unix.Getpagesize() {
		return fmt.Errorf("%d layers do not fit in the mount options of this kernel: %w", len(m.lowers), unix.E2BIG)
	}
	return unix.Mount("overlay", filepath.Join(m.dir, "rootfs"), "overlay", 0, data)
}

// options are those of mount(2). A label has commas, and SELinux takes it in quotes before overlayfs reads the rest.
func (m *overlay) options() string {
	quote := strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace
	lowers := make([]string, len(m.lowers))
	for i, l := range m.lowers {
		lowers[i] = quote(l)
	}
	data := "lowerdir=" + strings.Join(lowers, ":")
	if !m.readOnly {
		data += ",upperdir=" + quote(filepath.Join(m.dir, "upper")) + ",workdir=" + quote(filepath.Join(m.dir, "work"))
	}
	if m.label != "" {
		data += `,context="` + m.label + `"`
	}
	return data
}
