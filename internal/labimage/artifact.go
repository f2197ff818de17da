package labimage

import (
	"bytes"
	"encoding/json"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blob is a layer of an artifact.
type Blob struct {
	MediaType string
	Title     string // "" gives it no name
	Content   []byte
}

// TarBlob is a blob that is a layer's tar.
func TarBlob(c Compression, entries ...Entry) (Blob, error) {
	data, err := Tar(entries...)
	if err != nil {
		return Blob{}, err
	}
	l, err := Layer(data, c)
	if err != nil {
		return Blob{}, err
	}
	t, err := l.MediaType()
	if err != nil {
		return Blob{}, err
	}
	compressed, err := l.Compressed()
	if err != nil {
		return Blob{}, err
	}
	var out bytes.Buffer
	_, err = out.ReadFrom(compressed)
	return Blob{MediaType: string(t), Content: out.Bytes()}, err
}

// ArtifactType is the type of the artifacts that Artifact makes.
const ArtifactType = "application/vnd.gantry.lab"

// Artifact makes an OCI artifact as oras pushes them: no image, with the empty config.
func Artifact(blobs ...Blob) (v1.Image, error) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: ArtifactType, Config: ocispec.DescriptorEmptyJSON,
	}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	for _, b := range blobs {
		desc := ocispec.Descriptor{MediaType: b.MediaType, Digest: digest.FromBytes(b.Content), Size: int64(len(b.Content))}
		if b.Title != "" {
			desc.Annotations = map[string]string{ocispec.AnnotationTitle: b.Title}
		}
		m.Layers = append(m.Layers, desc)
		var err error
		if img, err = mutate.AppendLayers(img, static.NewLayer(b.Content, types.MediaType(b.MediaType))); err != nil {
			return nil, fmt.Errorf("lab artifact: %w", err)
		}
	}
	manifest, err := json.Marshal(m)
	return &liar{Image: img, config: ocispec.DescriptorEmptyJSON.Data, manifest: manifest}, err
}
