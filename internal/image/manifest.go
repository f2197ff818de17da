package image

import (
	"context"
	"encoding/json"
	"fmt"
	"mime"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxManifest = 8 << 20 // bytes of a manifest or index
	maxConfig   = 8 << 20 // bytes of a config
	maxNesting  = 4       // indexes in indexes
	maxLayers   = 500     // overlayfs stacks no more (fs/overlayfs, OVL_MAX_STACK)
)

// source delivers the small parts of an image, verified.
type source interface {
	Read(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error)
}

// described is what manifest and config say about an image or an artifact.
type described struct {
	id          string
	artifact    string // type; "" of an image
	manifest    []byte
	config      []byte
	layers      []wanted // the lowest first
	annotations map[string]string
}

// describe walks from what a reference stands for to the manifest and config for the store's platform.
func (s *Store) describe(ctx context.Context, src source, desc ocispec.Descriptor) (*described, error) {
	for range maxNesting {
		switch t := mediaType(desc); {
		case images.IsIndexType(t):
			data, err := src.Read(ctx, desc, maxManifest)
			if err != nil {
				return nil, fmt.Errorf("index: %w", err)
			}
			if desc, err = s.choose(desc.Digest, data); err != nil {
				return nil, err
			}
		case images.IsManifestType(t):
			return readManifest(ctx, src, desc)
		case t == images.MediaTypeDockerSchema1Manifest:
			return nil, fmt.Errorf("manifest %s has Docker's schema 1, which is no longer supported: %w", desc.Digest, errdefs.ErrNotImplemented)
		default:
			return nil, fmt.Errorf("%s is %q, not an image manifest or index: %w", desc.Digest, t, errdefs.ErrFailedPrecondition)
		}
	}
	return nil, fmt.Errorf("indexes are nested more than %d deep: %w", maxNesting, errdefs.ErrFailedPrecondition)
}

func mediaType(desc ocispec.Descriptor) string {
	t, _, err := mime.ParseMediaType(desc.MediaType)
	if err != nil {
		return desc.MediaType
	}
	return t
}

// choose picks the manifest for the store's platform from an index, the best match first.
func (s *Store) choose(of digest.Digest, data []byte) (ocispec.Descriptor, error) {
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("index %s: %w: %w", of, err, errdefs.ErrFailedPrecondition)
	}
	var fits, unsaid, unknown []ocispec.Descriptor
	var offered []string
	for _, m := range index.Manifests {
		switch {
		case !images.IsManifestType(mediaType(m)) && !images.IsIndexType(mediaType(m)):
		case m.Platform == nil:
			unsaid = append(unsaid, m)
		case m.Platform.OS == "unknown":
			unknown = append(unknown, m)
		case s.platform.Match(*m.Platform):
			fits = append(fits, m)
		default:
			offered = append(offered, strings.TrimRight(m.Platform.OS+"/"+m.Platform.Architecture+"/"+m.Platform.Variant, "/"))
		}
	}
	slices.SortStableFunc(fits, func(a, b ocispec.Descriptor) int {
		switch {
		case s.platform.Less(*a.Platform, *b.Platform):
			return -1
		case s.platform.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	fits = append(fits, unsaid...)
	if len(fits) == 0 && len(offered) == 0 { // beside images these are what builders attest about them
		fits = unknown
	}
	if len(fits) == 0 {
		return ocispec.Descriptor{}, fmt.Errorf("index %s has no image for this platform, only for %v: %w", of, offered, errdefs.ErrNotFound)
	}
	return fits[0], nil
}

func readManifest(ctx context.Context, src source, desc ocispec.Descriptor) (*described, error) {
	data, err := src.Read(ctx, desc, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	m, err := parseManifest(data)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	config, err := readConfig(ctx, src, m.Config)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	d, err := newDescribed(data, m, config)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	return d, nil
}

// readConfig reads the config from its descriptor where that holds it (artifacts' often do), else from src.
func readConfig(ctx context.Context, src source, desc ocispec.Descriptor) ([]byte, error) {
	if len(desc.Data) > 0 && desc.Digest.Algorithm().FromBytes(desc.Data) == desc.Digest {
		return desc.Data, nil
	}
	return src.Read(ctx, desc, maxConfig)
}

// parseManifest checks that data is a manifest whose layers can be had.
func parseManifest(data []byte) (*ocispec.Manifest, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if m.Config.MediaType == "" {
		return nil, fmt.Errorf("it says no media type of its config: %w", errdefs.ErrFailedPrecondition)
	}
	if err := m.Config.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("config digest %q: %w: %w", m.Config.Digest, err, errdefs.ErrFailedPrecondition)
	}
	if m.Config.Digest.Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("config digest %s: only sha256 names images here: %w", m.Config.Digest, errdefs.ErrNotImplemented)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%d layers, overlayfs stacks %d: %w", len(m.Layers), maxLayers, errdefs.ErrNotImplemented)
	}
	for i, l := range m.Layers {
		if err := checkLayer(l); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	return &m, nil
}

func checkLayer(l ocispec.Descriptor) error {
	t := l.MediaType
	if strings.Contains(t, "foreign") || strings.Contains(t, "nondistributable") {
		return fmt.Errorf("%s is a foreign layer (%s), which its registry does not serve: %w", l.Digest, t, errdefs.ErrNotImplemented)
	}
	if strings.HasSuffix(t, "+encrypted") {
		return fmt.Errorf("%s is %q, which nobody here can decrypt: %w", l.Digest, t, errdefs.ErrNotImplemented)
	}
	if err := l.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w: %w", l.Digest, err, errdefs.ErrFailedPrecondition)
	}
	if l.Size < 0 {
		return fmt.Errorf("%s has size %d: %w", l.Digest, l.Size, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// newDescribed puts a manifest, which data holds, and its config together.
func newDescribed(data []byte, m *ocispec.Manifest, config []byte) (*described, error) {
	d := &described{manifest: data, config: config, annotations: m.Annotations}
	if t := artifactType(m, config); t != "" {
		d.id, d.artifact = digest.FromBytes(data).String(), t
		var err error
		d.layers, err = artifactLayers(m)
		return d, err
	}
	d.id = m.Config.Digest.String()
	diffIDs, err := parseConfig(config, len(m.Layers))
	if err != nil {
		return nil, fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	for i, l := range m.Layers {
		if !images.IsLayerType(l.MediaType) {
			return nil, fmt.Errorf("layer %d: %s is %q, not a layer that can be unpacked: %w", i+1, l.Digest, l.MediaType, errdefs.ErrNotImplemented)
		}
		d.layers = append(d.layers, wanted{origin: origin{DiffID: diffIDs[i]}, blob: l})
	}
	return d, nil
}

// parseConfig checks an image config and returns the digests of its uncompressed layers.
func parseConfig(data []byte, layers int) ([]digest.Digest, error) {
	var c ocispec.Image
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if n := len(c.RootFS.DiffIDs); n != layers {
		return nil, fmt.Errorf("it names %d layers, the manifest %d: %w", n, layers, errdefs.ErrFailedPrecondition)
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("diff id %q: %w: %w", d, err, errdefs.ErrFailedPrecondition)
		}
	}
	return c.RootFS.DiffIDs, nil
}
