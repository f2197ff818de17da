package cli

import (
	"context"
	"errors"
	"fmt"

	core "k8s.io/api/core/v1"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/manifest"
)

// image makes sure that the container's image, and those that it mounts, are there as their pull policies
// have it, and puts their ids where the CRI wants them.
func (r *runner) image(ctx context.Context, c manifest.Container) error {
	have, err := r.bring(ctx, c.Config.Image, c.Pull)
	if err != nil {
		return err
	}
	if c.NonRoot {
		if err = checkNonRoot(have); err != nil {
			return err
		}
	}
	for _, m := range c.Mounted {
		if _, err = r.bring(ctx, m.Spec, m.Pull); err != nil {
			return err
		}
	}
	return nil
}

// bring has the image pulled as policy says, and makes spec name it by its id.
func (r *runner) bring(ctx context.Context, spec *v1.ImageSpec, policy core.PullPolicy) (*v1.Image, error) {
	have, err := r.lookUp(ctx, spec)
	if err != nil {
		return nil, err
	}
	switch {
	case policy == core.PullNever && have == nil:
		return nil, fmt.Errorf("image %s is not there and its pull policy is Never", spec.Image)
	case policy == core.PullAlways || have == nil:
		if _, err = r.client.Images.PullImage(ctx, spec, nil, r.pod.Sandbox); err != nil {
			return nil, err // the server names the image
		}
		if have, err = r.lookUp(ctx, spec); err != nil {
			return nil, err
		}
	}
	if have == nil {
		return nil, fmt.Errorf("image %s was removed right after it was pulled", spec.Image)
	}
	spec.Image = have.Id
	return have, nil
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
