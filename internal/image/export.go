package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gantry/internal/image/tree"
)

// Export writes the image that ref names as ExportAll does.
func (s *Store) Export(ctx context.Context, ref string, w io.Writer) error {
	return s.ExportAll(ctx, []string{ref}, w)
}

// ExportAll writes images as one tar that is an OCI layout and a docker-archive at once. An image that
// is named by a tag has that name in it, one that is named otherwise all its tags. The layers are the
// tars they were, not compressed: config and image id are the same, the manifest is a new one. Each
// layer is checked against its diff id: ErrDataLoss, after which what was written is of no use.
//
// A docker-archive cannot hold artifacts: with one among them the tar is an OCI layout alone. An artifact
// is the same afterwards if its tars were not compressed, else it has a new manifest and so a new id.
func (s *Store) ExportAll(ctx context.Context, refs []string, w io.Writer) error {
	images, err := s.toExport(refs)
	if err != nil {
		return err
	}
	var held []string
	for _, i := range images {
		for _, l := range i.record.Layers {
			held = append(held, l.Name)
		}
	}
	s.hold(held)
	defer s.release(held)
	x := &exporter{store: s, tar: tar.NewWriter(w), done: make(map[digest.Digest]bool)}
	if err := x.all(ctx, images); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// exported is an image and the names under which it is exported.
type exported struct {
	record *record
	names  []string
}

func (s *Store) toExport(refs []string) ([]*exported, error) {
	var images []*exported
	byID := make(map[string]*exported)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ref := range refs {
		r, err := s.index.find(ref)
		if err != nil {
			return nil, err
		}
		names := r.Tags
		if named, err := Normalize(ref); err == nil && slices.Contains(r.Tags, named.String()) {
			names = []string{named.String()}
		}
		if byID[r.ID] == nil {
			byID[r.ID] = &exported{record: r}
			images = append(images, byID[r.ID])
		}
		i := byID[r.ID]
		i.names = append(i.names, names...)
		slices.Sort(i.names)
		i.names = slices.Compact(i.names)
	}
	return images, nil
}

// dockerManifest is an entry of a docker-archive's manifest.json.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

type exporter struct {
	store *Store
	tar   *tar.Writer
	done  map[digest.Digest]bool // blobs that are written
}

func (x *exporter) all(ctx context.Context, images []*exported) error {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	var docker []dockerManifest
	if err := x.json(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}); err != nil {
		return err
	}
	artifacts := false
	for _, i := range images {
		desc, m, err := x.export(ctx, i)
		if err != nil {
			return fmt.Errorf("image %s: %w", i.record.ID, err)
		}
		docker = append(docker, m)
		artifacts = artifacts || i.record.Artifact != ""
		if len(i.names) == 0 {
			index.Manifests = append(index.Manifests, desc)
		}
		for _, name := range i.names {
			named := desc
			named.Annotations = map[string]string{annotationName: name}
			if ref, err := reference.ParseNormalizedNamed(name); err == nil {
				if tagged, ok := ref.(reference.Tagged); ok {
					named.Annotations[ocispec.AnnotationRefName] = tagged.Tag()
				}
			}
			index.Manifests = append(index.Manifests, named)
		}
	}
	if err := x.json(ocispec.ImageIndexFile, index); err != nil {
		return err
	}
	if !artifacts {
		if err := x.json(dockerFile, docker); err != nil {
			return err
		}
	}
	return x.tar.Close()
}

// export writes what an image or an artifact consists of.
func (x *exporter) export(ctx context.Context, i *exported) (ocispec.Descriptor, dockerManifest, error) {
	if i.record.Artifact != "" {
		desc, err := x.artifact(ctx, i.record)
		return desc, dockerManifest{}, err
	}
	return x.image(ctx, i)
}

// image writes the blobs of an image.
func (x *exporter) image(ctx context.Context, i *exported) (ocispec.Descriptor, dockerManifest, error) {
	r := i.record
	config := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(r.Config), Size: int64(len(r.Config))}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: []ocispec.Descriptor{}, Annotations: r.Annotations,
	}
	docker := dockerManifest{Config: blobName(config.Digest), RepoTags: i.names}
	if err := x.blob(config.Digest, r.Config); err != nil {
		return ocispec.Descriptor{}, docker, err
	}
	for n, l := range r.Layers {
		size, err := x.layer(ctx, l)
		if err != nil {
			return ocispec.Descriptor{}, docker, fmt.Errorf("layer %d of %d: %w", n+1, len(r.Layers), err)
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.DiffID, Size: size})
		docker.Layers = append(docker.Layers, blobName(l.DiffID))
	}
	data, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, docker, err
	}
	desc := ocispec.Descriptor{
		MediaType: m.MediaType, Digest: digest.FromBytes(data), Size: int64(len(data)),
		Platform: &ocispec.Platform{Architecture: r.decoded.Architecture, OS: r.decoded.OS, Variant: r.decoded.Variant},
	}
	return desc, docker, x.blob(desc.Digest, data)
}

// layer writes a layer's tar and returns its length.
func (x *exporter) layer(ctx context.Context, l layerRecord) (int64, error) {
	record := x.store.treePath(l.Name)
	size, err := tree.TarSize(record)
	if err != nil || x.done[l.DiffID] {
		return size, x.suspect(l, err)
	}
	x.done[l.DiffID] = true
	if err = x.header(blobName(l.DiffID), size); err != nil {
		return 0, err
	}
	digester := l.DiffID.Algorithm().Digester()
	err = tree.WriteTar(ctx, record, x.store.layerPath(l.Name), io.MultiWriter(x.tar, digester.Hash()))
	if got := digester.Digest(); err == nil && got != l.DiffID {
		err = fmt.Errorf("its files have diff id %s, had %s: %w", got, l.DiffID, errdefs.ErrDataLoss)
	}
	return size, x.suspect(l, err)
}

// suspect marks a layer as damaged if err says that it is.
func (x *exporter) suspect(l layerRecord, err error) error {
	if errdefs.IsDataLoss(err) {
		return errors.Join(err, x.store.markSharing(l, true))
	}
	return err
}

func (x *exporter) blob(d digest.Digest, data []byte) error {
	if x.done[d] {
		return nil
	}
	x.done[d] = true
	return x.file(blobName(d), data)
}

func (x *exporter) json(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return x.file(name, data)
}

func (x *exporter) file(name string, data []byte) error {
	if err := x.header(name, int64(len(data))); err != nil {
		return err
	}
	_, err := x.tar.Write(data)
	return err
}

func (x *exporter) header(name string, size int64) error {
	return x.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)})
}
