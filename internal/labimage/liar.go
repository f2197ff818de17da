package labimage

import (
	"encoding/json"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
)

// liar is an image whose config or manifest was edited without asking whether it is true.
type liar struct {
	v1.Image
	config, manifest []byte
}

func (l *liar) RawConfigFile() ([]byte, error)      { return l.config, nil }
func (l *liar) ConfigFile() (*v1.ConfigFile, error) { return partial.ConfigFile(l) }
func (l *liar) ConfigName() (v1.Hash, error)        { return partial.ConfigName(l) }
func (l *liar) RawManifest() ([]byte, error)        { return l.manifest, nil }
func (l *liar) Manifest() (*v1.Manifest, error)     { return partial.Manifest(l) }
func (l *liar) Digest() (v1.Hash, error)            { return partial.Digest(l) }
func (l *liar) Size() (int64, error)                { return partial.Size(l) }

// WithDiffID makes the config lie about the content of layer i.
func WithDiffID(img v1.Image, i int, diffID string) v1.Image {
	return edited(img, func(c *v1.ConfigFile, _ *v1.Manifest) {
		h, err := v1.NewHash(diffID)
		if err != nil {
			panic(err) // a mistake in the test
		}
		c.RootFS.DiffIDs[i] = h
	})
}

// WithManifest edits the manifest.
func WithManifest(img v1.Image, edit func(*v1.Manifest)) v1.Image {
	return edited(img, func(_ *v1.ConfigFile, m *v1.Manifest) { edit(m) })
}

func edited(img v1.Image, edit func(*v1.ConfigFile, *v1.Manifest)) v1.Image {
	l := &liar{Image: img}
	c, m := must(img.ConfigFile()).DeepCopy(), must(img.Manifest()).DeepCopy()
	edit(c, m)
	l.config = must(json.Marshal(c))
	name := must(partial.ConfigName(l))
	m.Config.Digest, m.Config.Size = name, int64(len(l.config))
	l.manifest = must(json.Marshal(m))
	return l
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // images in memory have no way to fail
	}
	return v
}
