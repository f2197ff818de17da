package cgroup

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
)

// Driver says who makes cgroups, and with it how their paths are written.
type Driver string

// The cgroup drivers that the kubelet knows.
const (
	Cgroupfs Driver = "cgroupfs"
	Systemd  Driver = "systemd"
)

// scopePrefix begins the names of the scopes that systemd makes for containers.
const scopePrefix = "gantry"

// ParseDriver reads the driver's name as it stands in a configuration.
func ParseDriver(name string) (Driver, error) {
	switch d := Driver(name); d {
	case Cgroupfs, Systemd:
		return d, nil
	}
	return "", fmt.Errorf("cgroup driver %q is neither %s nor %s: %w", name, Cgroupfs, Systemd, errdefs.ErrInvalidArgument)
}

// Parent returns the path of the cgroup that a pod's containers are made below. parent is the
// client's: for cgroupfs an absolute path, for systemd a slice's name or its path. When it is empty,
// the pod gets one of its own, named after key.
func (d Driver) Parent(parent, key string) (string, error) {
	if d == Systemd {
		if parent == "" {
			parent = scopePrefix + "-" + key + ".slice"
		}
		return ExpandSlice(path.Base(parent))
	}
	if parent == "" {
		return path.Join("/", scopePrefix, key), nil
	}
	if err := check(parent); err != nil {
		return "", err
	}
	return parent, nil
}

// Container returns the path of a container's cgroup below parent, which Parent returned.
func (d Driver) Container(parent, key string) string {
	if d == Systemd {
		return path.Join(parent, scopePrefix+"-"+key+".scope")
	}
	return path.Join(parent, key)
}

// OCIPath returns what an OCI spec's cgroupsPath must be for the container to end up in Container.
func (d Driver) OCIPath(parent, key string) string {
	if d == Systemd {
		return path.Base(parent) + ":" + scopePrefix + ":" + key
	}
	return path.Join(parent, key)
}

// FromOCI returns the path of the cgroup that an OCI spec's cgroupsPath asks for: what Container returns
// for what OCIPath does.
func (d Driver) FromOCI(cgroupsPath string) (string, error) {
	if d != Systemd {
		return cgroupsPath, check(cgroupsPath)
	}
	slice, unit, ok := strings.Cut(cgroupsPath, ":")
	prefix, name, ok2 := strings.Cut(unit, ":")
	if !ok || !ok2 || name == "" || strings.ContainsAny(unit, "/") {
		return "", fmt.Errorf("cgroups path %q is not of the form slice:prefix:name: %w", cgroupsPath, errdefs.ErrInvalidArgument)
	}
	parent, err := ExpandSlice(slice)
	if err != nil {
		return "", err
	}
	if prefix != "" {
		name = prefix + "-" + name
	}
	return path.Join(parent, name+".scope"), nil
}

// ExpandSlice returns the path of a systemd slice: a-b.slice lies in a.slice (systemd.slice(5)).
func ExpandSlice(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("cgroup parent %q is not a systemd slice: %w", slice, errdefs.ErrInvalidArgument)
	}
	if name == "-" {
		return "/", nil
	}
	full, prefix := "", ""
	for part := range strings.SplitSeq(name, "-") {
		if part == "" {
			return "", fmt.Errorf("cgroup parent %q is not a systemd slice: %w", slice, errdefs.ErrInvalidArgument)
		}
		full += "/" + prefix + part + ".slice"
		prefix += part + "-"
	}
	return full, nil
}
