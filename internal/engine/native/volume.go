package native

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"gantry/internal/image"
	"gantry/internal/ocispec"
	"gantry/internal/pod"
)

// An image volume is prepared as its container's root file system is. Its key is the container's with a
// number.
const volumeMark = ".volume-"

// volumeOwner is the container that a prepared root file system belongs to.
func volumeOwner(key string) pod.Key {
	owner, _, _ := strings.Cut(key, volumeMark)
	return pod.Key(owner)
}

// mountImages prepares the images among mounts, of the container with this root file system, and makes mounts
// name their directories. As Kubernetes documents image volumes, nothing in them can be changed or executed.
func (e *Engine) mountImages(ctx context.Context, of image.Mount, mounts []pod.Mount) error {
	for i := range mounts {
		m := &mounts[i]
		if m.Image == "" {
			continue
		}
		root, err := e.opts.Rootfs.Prepare(ctx, image.Mount{
			Key: of.Key + volumeMark + strconv.Itoa(i), Image: m.Image, Volume: true, IDs: of.IDs, Label: of.Label,
		})
		if err != nil {
			return fmt.Errorf("mount %s: image %s: %w", m.ContainerPath, m.Image, err)
		}
		if m.HostPath, err = ocispec.Below(root, m.ImageSubPath); err != nil {
			return fmt.Errorf("mount %s: image_sub_path %s: %w", m.ContainerPath, m.ImageSubPath, err)
		}
		m.Image, m.ImageSubPath, m.ReadOnly = "", "", true
		m.Options = append([]string{"noexec"}, m.Options...)
	}
	return nil
}

// releaseRootfs gives back a container's root file system and image volumes.
func (e *Engine) releaseRootfs(ctx context.Context, key pod.Key) error {
	prepared, err := e.opts.Rootfs.Prepared(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, k := range prepared {
		if volumeOwner(k) == key {
			errs = append(errs, e.opts.Rootfs.Release(ctx, k))
		}
	}
	return errors.Join(errs...)
}
