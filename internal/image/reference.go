package image

import (
	"fmt"
	"regexp"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// Normalize returns the canonical form of an image reference: "busybox" is
// docker.io/library/busybox:latest. Of a reference with a tag and a digest the digest counts, as
// containerd has it. The error is ErrInvalidArgument.
func Normalize(ref string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("image reference %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	if digested, ok := named.(reference.Digested); ok {
		if err := digested.Digest().Validate(); err != nil {
			return nil, fmt.Errorf("image reference %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
		}
		canonical, err := reference.WithDigest(reference.TrimNamed(named), digested.Digest())
		if err != nil {
			return nil, fmt.Errorf("image reference %q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
		}
		return canonical, nil
	}
	return reference.TagNameOnly(named), nil
}

var hexID = regexp.MustCompile(`^(?:sha256:)?([0-9a-f]{1,64})$`)

// idPrefix returns the hexadecimal digits of ref if it may be an image id or the beginning of one.
func idPrefix(ref string) (string, bool) {
	m := hexID.FindStringSubmatch(ref)
	if m == nil {
		return "", false
	}
	return m[1], true
}
