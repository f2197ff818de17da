package cli

import (
	"context"
	"errors"
	"fmt"

	core "k8s.io/api/core/v1"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/manifest"
)

// image makes sure that the container's image is there, as its pull policy has it, and puts the
// image's id where the CRI wants it.
func (r *runner) image(ctx context.Context, c manifest.Container) error {
	spec := c.Config.Image
	have, err := r.lookUp(ctx, spec)
	if err != nil {
		return err
	}
	switch {
	case c.Pull == core.PullNever && have == nil:
		return fmt.Errorf("image %s is not there and imagePullPolicy is Never", spec.Image)
	case c.Pull == core.PullAlways || have == nil:
		if _, err = r.client.Images.PullImage(ctx, spec, nil, r.pod.Sandbox); err != nil {
			return err // the server names the image
		}
		if have, err = r.lookUp(ctx, spec); err != nil {
			return err
		}
	}
	if have == nil {
		return fmt.Errorf("image %s was removed right after it was pulled", spec.Image)
	}
	if c.NonRoot {
		if err := checkNonRoot(have); err != nil {
			return err
		}
	}
	spec.Image = have.Id
	return nil
}

func (r *runner) lookUp(ctx context.Context, spec *v1.ImageSpec) (*v1.Image, error) {
	resp, err := r.client.Images.ImageStatus(ctx, spec, false)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", spec.Image, err)
	}
	return resp.Image, nil
}

// checkNonRoot is the kubelet's rule: a name cannot be trusted, no user is root.
func checkNonRoot(img *v1.Image) error {
	switch {
	case img.Uid != nil && img.Uid.Value != 0:
		return nil
	case img.Uid == nil && img.Username != "":
		return fmt.Errorf("runAsNonRoot: the image's user %q is no number, so it may be root: set runAsUser", img.Username)
	}
	return errors.New("runAsNonRoot: the image runs as root: set runAsUser")
}
