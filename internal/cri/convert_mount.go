package cri

import (
	"fmt"
	"slices"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

var propagations = map[runtime.MountPropagation]pod.Propagation{
	runtime.MountPropagation_PROPAGATION_PRIVATE:           pod.PropagationPrivate,
	runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: pod.PropagationHostToContainer,
	runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL:     pod.PropagationBidirectional,
}

func mounts(field string, list []*runtime.Mount) ([]pod.Mount, error) {
	var out []pod.Mount
	for i, m := range list {
		c, err := mount(fmt.Sprintf("%s[%d]", field, i), m)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func mount(field string, m *runtime.Mount) (pod.Mount, error) {
	out := pod.Mount{
		ContainerPath:     m.GetContainerPath(),
		HostPath:          m.GetHostPath(),
		ReadOnly:          m.GetReadonly(),
		RecursiveReadOnly: m.GetRecursiveReadOnly(),
		SELinuxRelabel:    m.GetSelinuxRelabel(),
		Options:           slices.Clone(m.GetMountOptions()),
	}
	if err := checkAbs(field+".container_path", m.GetContainerPath()); err != nil {
		return out, err
	}
	var err error
	if out.UIDs, err = idMappings(field+".uidMappings", m.GetUidMappings()); err != nil {
		return out, err
	}
	if out.GIDs, err = idMappings(field+".gidMappings", m.GetGidMappings()); err != nil {
		return out, err
	}
	var ok bool
	if out.Propagation, ok = propagations[m.GetPropagation()]; !ok {
		return out, invalid(field+".propagation", "%d is not a propagation", m.GetPropagation())
	}
	if err = checkMountFlags(field, m); err != nil {
		return out, err
	}
	return out, mountSource(field, m, &out)
}

// checkMountFlags holds the CRI's rule: recursive_read_only needs readonly and PROPAGATION_PRIVATE.
func checkMountFlags(field string, m *runtime.Mount) error {
	if m.GetRecursiveReadOnly() {
		if !m.GetReadonly() {
			return invalid(field+".recursive_read_only", "needs readonly")
		}
		if m.GetPropagation() != runtime.MountPropagation_PROPAGATION_PRIVATE {
			return invalid(field+".recursive_read_only", "needs propagation PROPAGATION_PRIVATE")
		}
	}
	for _, o := range m.GetMountOptions() {
		if o == "" || strings.ContainsAny(o, ", ") {
			return invalid(field+".mount_options", "%q is not one option", o)
		}
		if err := checkLine(field+".mount_options", o); err != nil {
			return err
		}
	}
	return nil
}

// mountSource takes the host path or the image; the CRI allows one of them. Image mounts are
// read-only by the definition of the feature.
func mountSource(field string, m *runtime.Mount, out *pod.Mount) error {
	img := m.GetImage()
	if img == nil {
		if m.GetImageSubPath() != "" {
			return invalid(field+".image_sub_path", "needs image")
		}
		return checkAbs(field+".host_path", m.GetHostPath())
	}
	if m.GetHostPath() != "" {
		return invalid(field+".host_path", "cannot be set together with image")
	}
	ref, err := imageName(field+".image", img)
	if err != nil {
		return err
	}
	out.Image, out.ImageSubPath, out.ReadOnly = ref, m.GetImageSubPath(), true
	return checkBelow(field+".image_sub_path", m.GetImageSubPath())
}

func devices(field string, list []*runtime.Device) ([]pod.Device, error) {
	var out []pod.Device
	for i, d := range list {
		f := fmt.Sprintf("%s[%d]", field, i)
		if err := checkAbs(f+".host_path", d.GetHostPath()); err != nil {
			return nil, err
		}
		if err := checkAbs(f+".container_path", d.GetContainerPath()); err != nil {
			return nil, err
		}
		p := d.GetPermissions()
		if p == "" || strings.Trim(p, "rwm") != "" {
			return nil, invalid(f+".permissions", "%q is not made of r, w and m", p)
		}
		out = append(out, pod.Device{ContainerPath: d.GetContainerPath(), HostPath: d.GetHostPath(), Permissions: p})
	}
	return out, nil
}

func cdiDevices(field string, list []*runtime.CDIDevice) ([]string, error) {
	var out []string
	for i, d := range list {
		f := fmt.Sprintf("%s[%d].name", field, i)
		if d.GetName() == "" {
			return nil, invalid(f, "must not be empty")
		}
		if err := checkLine(f, d.GetName()); err != nil {
			return nil, err
		}
		out = append(out, d.GetName())
	}
	return out, nil
}

func fromMounts(list []pod.Mount) []*runtime.Mount {
	var out []*runtime.Mount
	for _, m := range list {
		r := &runtime.Mount{
			ContainerPath:     m.ContainerPath,
			HostPath:          m.HostPath,
			Readonly:          m.ReadOnly,
			SelinuxRelabel:    m.SELinuxRelabel,
			UidMappings:       fromIDMappings(m.UIDs),
			GidMappings:       fromIDMappings(m.GIDs),
			RecursiveReadOnly: m.RecursiveReadOnly,
			ImageSubPath:      m.ImageSubPath,
			MountOptions:      m.Options,
		}
		for k, v := range propagations {
			if v == m.Propagation {
				r.Propagation = k
			}
		}
		if m.Image != "" {
			r.Image = &runtime.ImageSpec{Image: m.Image, ImageRef: m.Image}
		}
		out = append(out, r)
	}
	return out
}

func fromIDMappings(list []pod.IDMapping) []*runtime.IDMapping {
	var out []*runtime.IDMapping
	for _, m := range list {
		out = append(out, &runtime.IDMapping{HostId: m.HostID, ContainerId: m.ContainerID, Length: m.Length})
	}
	return out
}
