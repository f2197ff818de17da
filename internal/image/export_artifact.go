package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// artifact writes the blobs of an artifact.
func (x *exporter) artifact(ctx context.Context, r *record) (ocispec.Descriptor, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(r.Manifest, &m); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("manifest: %w: %w", err, errdefs.ErrDataLoss)
	}
	if err := x.blob(m.Config.Digest, r.Config); err != nil {
		return ocispec.Descriptor{}, err
	}
	data, changed := r.Manifest, false
	for n, was := range m.Layers {
		is, err := x.artifactBlob(ctx, r, was)
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("layer %d of %d: %w", n+1, len(m.Layers), err)
		}
		m.Layers[n], changed = is, changed || is.Digest != was.Digest
	}
	if changed {
		var err error
		if data, err = json.Marshal(m); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	desc := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: r.Artifact,
		Digest: digest.FromBytes(data), Size: int64(len(data)),
	}
	return desc, x.blob(desc.Digest, data)
}

// artifactBlob writes a blob of an artifact and returns what describes it in the export: a tar that was
// compressed is another blob there.
func (x *exporter) artifactBlob(ctx context.Context, r *record, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	if isEmptyBlob(desc) {
		return desc, x.blob(desc.Digest, ocispec.DescriptorEmptyJSON.Data)
	}
	n := slices.IndexFunc(r.Layers, func(l layerRecord) bool { return l.Blob == desc.Digest })
	if n < 0 {
		return desc, fmt.Errorf("no layer is made of %s: %w", desc.Digest, errdefs.ErrDataLoss)
	}
	l := r.Layers[n]
	if l.AsFile {
		return desc, x.suspect(l, x.blobFile(l, desc))
	}
	size, err := x.layer(ctx, l)
	if l.DiffID != desc.Digest {
		desc.MediaType, desc.Digest, desc.Size = uncompressed(desc.MediaType), l.DiffID, size
	}
	return desc, err
}

// blobFile writes the blob that is the layer's one file.
func (x *exporter) blobFile(l layerRecord, desc ocispec.Descriptor) error {
	if x.done[desc.Digest] {
		return nil
	}
	x.done[desc.Digest] = true
	f, err := os.OpenFile(filepath.Join(x.store.layerPath(l.Name), l.File), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	defer func() { _ = f.Close() }()
	if err = x.header(blobName(desc.Digest), desc.Size); err != nil {
		return err
	}
	digester := desc.Digest.Algorithm().Digester()
	n, err := io.Copy(io.MultiWriter(x.tar, digester.Hash()), io.LimitReader(f, desc.Size))
	if got := digester.Digest(); err == nil && got != desc.Digest {
		err = fmt.Errorf("its %d bytes have digest %s, had %s: %w", n, got, desc.Digest, errdefs.ErrDataLoss)
	}
	return err
}
