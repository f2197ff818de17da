package image_test

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"gantry/internal/image"
	"gantry/internal/labimage"
)

func TestImportOfADockerArchive(t *testing.T) {
	one := build(t, v1.Config{User: "1"}, []labimage.Entry{labimage.File("f", 0o644, "one")})
	two := build(t, v1.Config{User: "2"}, []labimage.Entry{labimage.File("f", 0o644, "one")}, []labimage.Entry{labimage.File("g", 0o644, "two")})
	var buf bytes.Buffer
	err := tarball.MultiRefWrite(map[name.Reference]v1.Image{
		name.MustParseReference("example.com/one:1"): one, name.MustParseReference("example.com/two:2"): two,
	}, &buf)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, image.Options{})
	ids, err := s.Import(t.Context(), &buf)
	if err != nil || len(ids) != 2 {
		t.Fatalf("imported %v, %v", ids, err)
	}
	want, _ := two.ConfigName()
	img, err := s.Get(t.Context(), "example.com/two:2")
	if err != nil || img.ID != want.String() || img.User != "2" {
		t.Fatalf("image %+v, %v", img, err)
	}
	if got := read(t, prepare(t, s, "c", img.ID), "g"); got != "two" {
		t.Errorf("content %q", got)
	}
}

func TestImportOfAnOCILayout(t *testing.T) {
	img := build(t, v1.Config{}, []labimage.Entry{labimage.File("f", 0o644, "oci")})
	s := open(t, image.Options{})
	ids, err := s.Import(t.Context(), ociTar(t, img, nil))
	if err != nil {
		t.Fatal(err)
	}
	digest, _ := img.Digest()
	wantNames(t, s, ids[0], []string{"example.com/app:1"}, []string{"example.com/app@" + digest.String()})
	if got := read(t, prepare(t, s, "c", ids[0]), "f"); got != "oci" {
		t.Errorf("content %q", got)
	}
}

// ociTar is an OCI layout of img as a tar; spoil may change its files.
func ociTar(t *testing.T, img v1.Image, spoil func(name string, data []byte) []byte) *bytes.Buffer {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	err = p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "example.com/app:1"}))
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if spoil != nil {
			data = spoil(rel, data)
		}
		if err = tw.WriteHeader(&tar.Header{Name: rel, Mode: 0o644, Size: int64(len(data))}); err != nil {
			return err
		}
		_, err = tw.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

func TestBrokenArchivesLeaveNothing(t *testing.T) {
	img := build(t, v1.Config{}, []labimage.Entry{labimage.File("f", 0o644, noise(50_000))})
	flip := func(largest bool) func(string, []byte) []byte {
		return func(name string, data []byte) []byte {
			if strings.HasPrefix(name, "blobs/") && (len(data) > 10_000) == largest {
				data[len(data)/2] ^= 1
			}
			return data
		}
	}
	whole := ociTar(t, img, nil).Bytes()
	for name, c := range map[string]struct {
		data []byte
		want func(error) bool
	}{
		"no archive":        {labimageTar(t), errdefs.IsInvalidArgument},
		"cut":               {whole[:len(whole)/2], errdefs.IsInvalidArgument},
		"a flipped layer":   {ociTar(t, img, flip(true)).Bytes(), errdefs.IsDataLoss},
		"a flipped config":  {ociTar(t, img, flip(false)).Bytes(), errdefs.IsDataLoss},
		"not a tar at all":  {[]byte(strings.Repeat("no ", 1000)), errdefs.IsInvalidArgument},
		"an empty manifest": {labimageTar(t, labimage.File("manifest.json", 0o644, "{")), errdefs.IsInvalidArgument},
	} {
		root := t.TempDir()
		s := open(t, image.Options{Root: root})
		if _, err := s.Import(t.Context(), bytes.NewReader(c.data)); !c.want(err) {
			t.Errorf("%s: %v", name, err)
		}
		wantNothingLeft(t, root)
	}
}

func labimageTar(t *testing.T, entries ...labimage.Entry) []byte {
	t.Helper()
	data, err := labimage.Tar(entries...)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
