package image

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// cnaiPath is how models name their files (github.com/modelpack/model-spec, docs/annotations.md).
const cnaiPath = "org.cnai.model.filepath"

// artifactType returns what a manifest's content is if it is no image: the type that it says, else the
// media type of its config. A config of an image that knows no layers is how some tools fill that place.
func artifactType(m *ocispec.Manifest, config []byte) string {
	if images.IsConfigType(m.Config.MediaType) {
		var c ocispec.Image
		if m.ArtifactType == "" || len(m.Layers) == 0 || json.Unmarshal(config, &c) != nil || len(c.RootFS.DiffIDs) > 0 {
			return ""
		}
	}
	if m.ArtifactType != "" {
		return m.ArtifactType
	}
	return m.Config.MediaType
}

// artifactLayers are the layers of an artifact, each of one blob: see ADR 9.
func artifactLayers(m *ocispec.Manifest) ([]wanted, error) {
	var layers []wanted
	paths := make(map[string]ocispec.Descriptor)
	for i, l := range m.Layers {
		if isEmptyBlob(l) {
			continue
		}
		file, err := blobPath(l)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		if other, ok := paths[file]; ok {
			if other.Digest == l.Digest {
				continue
			}
			return nil, fmt.Errorf("layer %d: a file %q is there already: %w", i+1, file, errdefs.ErrFailedPrecondition)
		}
		paths[file] = l
		layers = append(layers, wanted{origin{Blob: l.Digest, File: file, Tar: isTar(l.MediaType)}, l})
	}
	return layers, checkNesting(paths)
}

// isEmptyBlob says whether l stands for the absence of layers (OCI image spec, guidance for an empty
// descriptor).
func isEmptyBlob(l ocispec.Descriptor) bool {
	return l.MediaType == ocispec.MediaTypeEmptyJSON && l.Digest == ocispec.DescriptorEmptyJSON.Digest
}

// blobPath is where a blob lies if it is a file: as its annotations name it, else as its digest does.
func blobPath(l ocispec.Descriptor) (string, error) {
	file := l.Annotations[ocispec.AnnotationTitle]
	if file == "" {
		file = l.Annotations[cnaiPath]
	}
	if file == "" {
		return strings.Replace(l.Digest.String(), ":", "-", 1), nil
	}
	clean := strings.TrimPrefix(file, "./")
	if !fs.ValidPath(clean) || clean == "." || strings.ContainsRune(clean, 0) || len(clean) >= 4096 {
		return "", fmt.Errorf("%q does not name a file in the artifact: %w", file, errdefs.ErrFailedPrecondition)
	}
	for name := range strings.SplitSeq(clean, "/") {
		if strings.HasPrefix(name, ".wh.") || len(name) > 255 {
			return "", fmt.Errorf("%q cannot be a file's name in a layer: %w", file, errdefs.ErrFailedPrecondition)
		}
	}
	return clean, nil
}

// checkNesting refuses files that others need as directories.
func checkNesting(files map[string]ocispec.Descriptor) error {
	for file := range files {
		for dir := path.Dir(file); dir != "."; dir = path.Dir(dir) {
			if _, ok := files[dir]; ok {
				return fmt.Errorf("%q is a file and a directory: %w", dir, errdefs.ErrFailedPrecondition)
			}
		}
	}
	return nil
}

// isTar says whether a blob's media type is a tar's, compressed or not.
func isTar(mediaType string) bool {
	kind, _, _ := strings.Cut(mediaType, "+")
	return images.IsLayerType(mediaType) || strings.HasSuffix(kind, ".tar")
}

// uncompressed is the media type of a tar that is not compressed, of one that may be.
func uncompressed(mediaType string) string {
	kind, _, _ := strings.Cut(mediaType, "+")
	if strings.HasSuffix(kind, ".tar") {
		return kind
	}
	return ocispec.MediaTypeImageLayer
}
