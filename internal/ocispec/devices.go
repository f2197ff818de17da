package ocispec

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// Device is a device node that a container gets.
type Device struct {
	Path   string // in the container
	Type   string // "c" or "b"
	Major  int64
	Minor  int64
	Mode   os.FileMode
	UID    uint32
	GID    uint32
	Access string // subset of "rwm"
}

// ResolveDevices looks at the node's devices that the container asks for; a directory stands for
// every device in it. A privileged container gets all of the node's besides.
func ResolveDevices(c *pod.ContainerSpec) ([]Device, error) {
	var all []Device
	if c.Security.Privileged {
		found, err := nodeDevices("/dev")
		if err != nil {
			return nil, err
		}
		all = found
	}
	for _, d := range c.Devices {
		found, err := resolveDevice(d)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return last(all, func(d Device) string { return d.Path }), nil
}

func resolveDevice(d pod.Device) ([]Device, error) {
	access := d.Permissions
	if access == "" {
		access = "rwm"
	}
	if strings.Trim(access, "rwm") != "" {
		return nil, fmt.Errorf("device %s: permissions %q are not of \"rwm\": %w", d.HostPath, access, errdefs.ErrInvalidArgument)
	}
	inside := d.ContainerPath
	if inside == "" {
		inside = d.HostPath
	}
	// by-id links and the like lead to the device.
	source, err := filepath.EvalSymlinks(d.HostPath)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w: %w", d.HostPath, errdefs.ErrInvalidArgument, err)
	}
	if st, err := os.Stat(source); err == nil && st.IsDir() {
		return devicesBelow(source, inside, access)
	}
	found, ok := statDevice(source, inside, access)
	if !ok {
		return nil, fmt.Errorf("device %s: not a device: %w", d.HostPath, errdefs.ErrInvalidArgument)
	}
	return []Device{found}, nil
}

// nodeDevices lists the devices in dir, without what a container has of its own.
func nodeDevices(dir string) ([]Device, error) {
	own := []string{"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("devices of the node: %w", err)
	}
	var all []Device
	for _, e := range entries {
		if slices.Contains(own, e.Name()) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if e.IsDir() {
			found, err := devicesBelow(path, path, "rwm")
			if err != nil {
				return nil, err
			}
			all = append(all, found...)
			continue
		}
		if d, ok := statDevice(path, path, "rwm"); ok {
			all = append(all, d)
		}
	}
	return all, nil
}

// devicesBelow lists the devices in a tree of the node, placed below inside.
func devicesBelow(dir, inside, access string) ([]Device, error) {
	var all []Device
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if d, ok := statDevice(p, filepath.Join(inside, strings.TrimPrefix(p, dir)), access); ok {
			all = append(all, d)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("devices in %s: %w", dir, err)
	}
	return all, nil
}

func statDevice(path, inside, access string) (Device, bool) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Device{}, false
	}
	d := Device{
		Path: inside, Access: access, UID: st.Uid, GID: st.Gid, Mode: os.FileMode(st.Mode & 0o7777),
		Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return Device{}, false
	}
	return d, true
}
