package manifest

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	core "k8s.io/api/core/v1"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (b *builder) podVolumes() error {
	for _, v := range b.in.Spec.Volumes {
		if v.Name == "" || strings.ContainsAny(v.Name, "/ ") || v.Name == "." || v.Name == ".." {
			return fmt.Errorf("volume name %q is not a DNS label", v.Name)
		}
		if _, twice := b.volumes[v.Name]; twice {
			return fmt.Errorf("two volumes are named %s", v.Name)
		}
		vol, err := b.volume(v)
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
		b.volumes[v.Name] = len(b.out.Volumes)
		b.out.Volumes = append(b.out.Volumes, vol)
	}
	return nil
}

func (b *builder) volume(v core.Volume) (Volume, error) {
	switch {
	case v.EmptyDir != nil:
		return b.emptyDir(v)
	case v.HostPath != nil:
		if !filepath.IsAbs(v.HostPath.Path) {
			return Volume{}, fmt.Errorf("hostPath %q is not an absolute path", v.HostPath.Path)
		}
		return Volume{Name: v.Name, Path: v.HostPath.Path, Type: deref(v.HostPath.Type)}, nil
	case v.Image != nil:
		if v.Image.Reference == "" {
			return Volume{}, errors.New("image: reference is missing")
		}
		return Volume{Name: v.Name, Image: v.Image.Reference, Pull: pullPolicy(v.Image.Reference, v.Image.PullPolicy)}, nil
	}
	kinds := jsonKeys(v.VolumeSource)
	if len(kinds) == 0 {
		kinds = []string{"a volume of no kind"}
	}
	return Volume{}, fmt.Errorf("%s is not supported: only emptyDir, hostPath and image are", strings.Join(kinds, ", "))
}

func (b *builder) emptyDir(v core.Volume) (Volume, error) {
	out := Volume{Name: v.Name, Empty: true}
	switch v.EmptyDir.Medium {
	case core.StorageMediumDefault:
		out.Path = filepath.Join(b.opts.Dir, "volumes", v.Name)
	case core.StorageMediumMemory:
		out.Path = filepath.Join(b.opts.MemoryDir, v.Name)
	default:
		return Volume{}, fmt.Errorf("emptyDir medium %q is not supported: only Memory is", v.EmptyDir.Medium)
	}
	if v.EmptyDir.SizeLimit != nil {
		b.note("volume " + v.Name + ": sizeLimit is not enforced")
	}
	if b.in.Spec.SecurityContext != nil {
		out.Group = b.in.Spec.SecurityContext.FSGroup
	}
	return out, nil
}

// mounts are those of a container, to which those of images are added.
func (b *builder) mounts(in []core.VolumeMount, of *Container) ([]*v1.Mount, error) {
	var out []*v1.Mount
	for _, m := range in {
		i, ok := b.volumes[m.Name]
		if !ok {
			return nil, fmt.Errorf("volumeMount %s: the pod has no such volume", m.Name)
		}
		vol := &b.out.Volumes[i]
		mount, err := mount(vol.Path, m)
		if err != nil {
			return nil, fmt.Errorf("volumeMount %s: %w", m.Name, err)
		}
		if vol.Image != "" {
			mountImage(mount, vol, m.SubPath)
			of.Mounted = append(of.Mounted, Image{mount.Image, vol.Pull})
		} else {
			mount.UidMappings, mount.GidMappings = b.ids(), b.ids()
		}
		if m.SubPath != "" && vol.Image == "" {
			vol.SubPaths = union(vol.SubPaths, []string{m.SubPath})
		}
		out = append(out, mount)
	}
	return out, nil
}

// mountImage makes a mount one of an image, which nobody can write.
func mountImage(m *v1.Mount, volume *Volume, subPath string) {
	m.HostPath, m.Readonly = "", true
	m.Image, m.ImageSubPath = &v1.ImageSpec{Image: volume.Image, UserSpecifiedImage: volume.Image}, subPath
}

func mount(volume string, m core.VolumeMount) (*v1.Mount, error) {
	out := &v1.Mount{ContainerPath: m.MountPath, HostPath: volume, Readonly: m.ReadOnly}
	if !filepath.IsAbs(m.MountPath) {
		return nil, fmt.Errorf("mountPath %q is not an absolute path", m.MountPath)
	}
	if m.SubPath != "" {
		if !filepath.IsLocal(m.SubPath) {
			return nil, fmt.Errorf("subPath %q leaves the volume", m.SubPath)
		}
		out.HostPath = filepath.Join(volume, m.SubPath)
	}
	switch deref(m.MountPropagation) {
	case "", core.MountPropagationNone:
	case core.MountPropagationHostToContainer:
		out.Propagation = v1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	case core.MountPropagationBidirectional:
		out.Propagation = v1.MountPropagation_PROPAGATION_BIDIRECTIONAL
	default:
		return nil, fmt.Errorf("mountPropagation %q is not known", *m.MountPropagation)
	}
	switch deref(m.RecursiveReadOnly) {
	case "", core.RecursiveReadOnlyDisabled, core.RecursiveReadOnlyIfPossible:
	case core.RecursiveReadOnlyEnabled:
		if !m.ReadOnly {
			return nil, errors.New("recursiveReadOnly needs readOnly")
		}
		out.RecursiveReadOnly = true
	default:
		return nil, fmt.Errorf("recursiveReadOnly %q is not known", *m.RecursiveReadOnly)
	}
	return out, nil
}
