package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"

	"gantry/internal/bench"
	"gantry/internal/labimage"
)

// pull is what is pulled at once: one image, or several.
type pull struct {
	name   string
	refs   []string
	blobs  int // that there are to fetch, configurations included
	layers []v1.Layer
}

const (
	bigImage    = 300 << 20 // bytes of files
	halfImage   = bigImage / 2
	manyLayers  = 9
	largestFile = 16 << 20
	smallFiles  = 20_000
	smallFile   = 2 << 10
	sharedAll   = 160 << 20 // bytes of files of two images that share layers
	sharedNo    = 10        // their layers, two of which are not shared
	window      = 8 << 20   // what zstd's levels up to 19 use
)

// pushBig makes the images that are pulled, of this machine's own files, and pushes them: many files in nine
// layers; half of them in one, and in two by zstd; many small ones; and two images that differ in their last
// layer.
func (r *registry) pushBig() error {
	files, err := collect("/usr", bigImage)
	if err != nil {
		return err
	}
	half, err := collect("/usr", halfImage)
	if err != nil {
		return err
	}
	shared, err := collect("/usr", sharedAll)
	if err != nil {
		return err
	}
	for _, p := range []struct {
		name   string
		layers [][]labimage.Entry
		make   func([][]labimage.Entry) ([]v1.Layer, error)
	}{
		{bench.BigPull, split(files, manyLayers), compress},
		{fmt.Sprintf("pull of %d MiB, one layer", halfImage>>20), [][]labimage.Entry{half}, compress},
		{fmt.Sprintf("pull of %d MiB, two layers, zstd", halfImage>>20), split(half, 2), zstd},
		{fmt.Sprintf("pull of %d files of %d KiB", smallFiles, smallFile>>10), [][]labimage.Entry{crumbs(files)}, compress},
	} {
		layers, failed := p.make(p.layers)
		if failed == nil {
			failed = r.add(p.name, layers)
		}
		if failed != nil {
			return failed
		}
	}
	all, err := compress(split(shared, sharedNo))
	if err != nil {
		return err
	}
	const both = sharedNo - 2
	name := fmt.Sprintf("pull of two images at once, %d MiB, that share %d of %d layers", sharedAll>>20, both, sharedNo)
	return r.add(name, all[:both+1], append(slices.Clone(all[:both]), all[both+1]))
}

// add pushes images that are pulled at once.
func (r *registry) add(name string, images ...[]v1.Layer) error {
	p := pull{name: name, layers: images[0]}
	blobs := make(map[v1.Hash]bool)
	for i, layers := range images {
		// configurations differ: no runtime may take one image for another
		img, err := labimage.Image(v1.Config{User: fmt.Sprint(100*len(r.big) + i)}, layers...)
		if err != nil {
			return err
		}
		ref, err := r.Push(fmt.Sprintf("bench/big%d-%d:1", len(r.big), i), img)
		if err != nil {
			return err
		}
		p.refs = append(p.refs, ref)
		config, err := img.ConfigName()
		if err != nil {
			return err
		}
		blobs[config] = true
		for _, l := range layers {
			digest, err := l.Digest()
			if err != nil {
				return err
			}
			blobs[digest] = true
		}
	}
	p.blobs = len(blobs)
	r.big = append(r.big, p)
	return nil
}

// split deals files out to layers of about the same size.
func split(files []labimage.Entry, count int) [][]labimage.Entry {
	var size, filled int64
	for _, f := range files {
		size += int64(len(f.Content))
	}
	layers := make([][]labimage.Entry, count)
	for _, f := range files {
		i := min(filled*int64(count)/size, int64(count)-1)
		layers[i] = append(layers[i], f)
		filled += int64(len(f.Content))
	}
	return layers
}

// crumbs are small files, cut from others.
func crumbs(files []labimage.Entry) []labimage.Entry {
	var all []labimage.Entry
	for _, f := range files {
		for content := range slices.Chunk(f.Content, smallFile) {
			if len(all) == smallFiles {
				return all
			}
			all = append(all, labimage.File(fmt.Sprintf("small/%d/%d", len(all)/100, len(all)), 0o644, string(content)))
		}
	}
	return all
}

// compress makes layers as registries have them, some at a time.
func compress(layers [][]labimage.Entry) ([]v1.Layer, error) {
	return eachLayer(layers, func(data []byte) (v1.Layer, error) {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		_, err := z.Write(data)
		if err = errors.Join(err, z.Close()); err != nil {
			return nil, err
		}
		open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil }
		return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
	})
}

func zstd(layers [][]labimage.Entry) ([]v1.Layer, error) {
	return eachLayer(layers, func(data []byte) (v1.Layer, error) { return labimage.ZstdLayer(data, window) })
}

func eachLayer(layers [][]labimage.Entry, do func(tar []byte) (v1.Layer, error)) ([]v1.Layer, error) {
	all := make([]v1.Layer, len(layers))
	var g errgroup.Group
	g.SetLimit(2)
	for i, entries := range layers {
		g.Go(func() error {
			data, err := labimage.Tar(entries...)
			if err == nil {
				all[i], err = do(data)
			}
			return err
		})
	}
	return all, g.Wait()
}

var errFull = errors.New("enough files")

// collect takes files below root until there are size bytes.
func collect(root string, size int64) (files []labimage.Entry, err error) {
	var have int64
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // what cannot be read is left out
		}
		info, err := d.Info()
		if err != nil || info.Size() > largestFile {
			return nil //nolint:nilerr // the same
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // the same
		}
		files = append(files, labimage.File(path[1:], int64(info.Mode().Perm()), string(data)))
		if have += int64(len(data)); have >= size {
			return errFull
		}
		return nil
	})
	if !errors.Is(err, errFull) {
		return nil, fmt.Errorf("%s has only %d bytes of files: %w", root, have, err)
	}
	return files, nil
}
