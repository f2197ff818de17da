package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gantry/internal/pod"
)

const (
	dockerFile     = "manifest.json"            // what a docker-archive is known by
	annotationName = "io.containerd.image.name" // whole name of an image in an OCI layout
)

// Import takes the images of a tar that holds an OCI layout or a docker-archive (docker save) and
// returns their ids in the order in which the tar names them. A failed import of several images keeps
// those before the one that failed.
func (s *Store) Import(ctx context.Context, r io.Reader) (ids []string, err error) {
	dir, err := os.MkdirTemp(s.dir(stagingDir), "import-")
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	a, err := spool(ctx, r, dir)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	images, err := a.images(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	for _, i := range images {
		id, err := s.assemble(ctx, i.described, i.names, func(ctx context.Context, n int) (*layer, error) {
			return s.importLayer(ctx, a, i, n)
		})
		if err != nil {
			return ids, fmt.Errorf("import: %w", err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// archived is an image in an archive.
type archived struct {
	*described
	names []string
	files []string // of the layers, the lowest first
}

func (s *Store) importLayer(ctx context.Context, a *archive, i *archived, n int) (*layer, error) {
	w := &i.layers[n]
	l, err := s.obtain(ctx, w.origin, func(pod.LayerProgress) {}, func(ctx context.Context, _ func(pod.LayerProgress)) (*layer, error) {
		f, err := a.open(i.files[n])
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		blob := io.Reader(f)
		if w.Blob != "" { // an artifact's has no other digest that could be checked
			blob = &whole{newVerifier(f, w.Blob)}
		}
		return s.unpack(ctx, func() {}, blob, w)
	})
	if err != nil {
		return nil, fmt.Errorf("layer %d of %d: %w", n+1, len(i.files), err)
	}
	return l, nil
}

// whole ends with an error if what passed does not have its digest.
type whole struct{ *verifier }

func (w *whole) Read(p []byte) (int, error) {
	n, err := w.verifier.Read(p)
	if errors.Is(err, io.EOF) {
		if got := w.digester.Digest(); got != w.want {
			return n, fmt.Errorf("content of %s has digest %s: %w", w.want, got, errdefs.ErrDataLoss)
		}
	}
	return n, err
}

// archive is a tar whose files were written to numbered files in a directory.
type archive struct {
	files map[string]string // name in the tar to path
	links map[string]string // symbolic and hard links in the tar
}

func spool(ctx context.Context, r io.Reader, dir string) (*archive, error) {
	a := &archive{files: make(map[string]string), links: make(map[string]string)}
	tr := tar.NewReader(r)
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read archive: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		name := path.Clean(hdr.Name)
		switch hdr.Typeflag {
		case tar.TypeReg:
			to := filepath.Join(dir, strconv.Itoa(len(a.files)))
			if err := write(to, tr); errors.Is(err, io.ErrUnexpectedEOF) {
				return nil, fmt.Errorf("read archive: %s: %w: %w", name, err, errdefs.ErrInvalidArgument)
			} else if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			a.files[name] = to
		case tar.TypeSymlink:
			a.links[name] = path.Join(path.Dir(name), hdr.Linkname)
		case tar.TypeLink:
			a.links[name] = path.Clean(hdr.Linkname)
		}
	}
}

func write(to string, r io.Reader) error {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

func (a *archive) open(name string) (*os.File, error) {
	name = path.Clean(name)
	if target, ok := a.links[name]; ok {
		name = target
	}
	file, ok := a.files[name]
	if !ok {
		return nil, fmt.Errorf("the archive has no %s: %w", name, errdefs.ErrInvalidArgument)
	}
	return os.Open(file)
}

func (a *archive) json(name string, v any) error {
	data, err := a.read(name, maxManifest)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (a *archive) read(name string, limit int64) ([]byte, error) {
	f, err := a.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes: %w", name, limit, errdefs.ErrInvalidArgument)
	}
	return data, err
}

// Read returns a blob of an OCI layout, verified.
func (a *archive) Read(_ context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w: %w", desc.Digest, err, errdefs.ErrInvalidArgument)
	}
	data, err := a.read(blobName(desc.Digest), limit)
	if err != nil {
		return nil, err
	}
	if got := desc.Digest.Algorithm().FromBytes(data); got != desc.Digest {
		return nil, fmt.Errorf("content of %s has digest %s: %w", desc.Digest, got, errdefs.ErrDataLoss)
	}
	return data, nil
}

func blobName(d digest.Digest) string { return path.Join("blobs", d.Algorithm().String(), d.Encoded()) }

// images reads what the archive says about its images. Of a tar that is both (as docker save writes
// it today) the docker part counts, because it has the names.
func (a *archive) images(ctx context.Context, s *Store) ([]*archived, error) {
	if _, ok := a.files[dockerFile]; ok {
		return a.dockerImages()
	}
	if _, ok := a.files[ocispec.ImageIndexFile]; ok {
		return a.ociImages(ctx, s)
	}
	return nil, fmt.Errorf("the tar is no OCI layout and no docker-archive: %w", errdefs.ErrInvalidArgument)
}

func (a *archive) dockerImages() ([]*archived, error) {
	var list []dockerManifest
	if err := a.json(dockerFile, &list); err != nil {
		return nil, err
	}
	var images []*archived
	for _, m := range list {
		config, err := a.read(m.Config, maxConfig)
		if err != nil {
			return nil, err
		}
		i := &archived{described: &described{id: digest.FromBytes(config).String(), config: config}, files: m.Layers}
		diffIDs, err := parseConfig(config, len(m.Layers))
		if err != nil {
			return nil, fmt.Errorf("config %s: %w", m.Config, err)
		}
		for _, id := range diffIDs {
			i.layers = append(i.layers, wanted{origin: origin{DiffID: id}})
		}
		for _, tag := range m.RepoTags {
			named, err := Normalize(tag)
			if err != nil {
				return nil, err
			}
			i.names = append(i.names, named.String())
		}
		images = append(images, i)
	}
	return images, nil
}

func (a *archive) ociImages(ctx context.Context, s *Store) ([]*archived, error) {
	var index ocispec.Index
	if err := a.json(ocispec.ImageIndexFile, &index); err != nil {
		return nil, err
	}
	var images []*archived
	for _, desc := range index.Manifests {
		d, err := s.describe(ctx, a, desc)
		if err != nil {
			return nil, err
		}
		i := &archived{described: d, names: ociNames(desc)}
		for _, l := range d.layers {
			i.files = append(i.files, blobName(l.blob.Digest))
		}
		images = append(images, i)
	}
	return images, nil
}

// ociNames are the names that an OCI layout gives an image, if it gives it a whole one.
func ociNames(desc ocispec.Descriptor) []string {
	name := desc.Annotations[annotationName]
	if name == "" {
		name = desc.Annotations[ocispec.AnnotationRefName]
	}
	if !strings.ContainsAny(name, "/:") { // a bare tag
		return nil
	}
	named, err := Normalize(name)
	if err != nil {
		return nil
	}
	return []string{named.String(), reference.TrimNamed(named).String() + "@" + desc.Digest.String()}
}
