package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/labimage"
)

// pushed is an image in the registry.
type pushed struct{ name, ref string }

const (
	manyLayers  = 9
	largestFile = 16 << 20
)

// pushAll pushes images of nine layers and of a single one, by gzip, and one of two layers by zstd with wide
// windows, of the same files.
func pushAll(r *labimage.Server, size int64) ([]pushed, error) {
	files, err := collect("/usr", size)
	if err != nil {
		return nil, err
	}
	layers := make([][]labimage.Entry, manyLayers)
	var filled int64
	for _, f := range files {
		i := min(filled*manyLayers/size, manyLayers-1)
		layers[i] = append(layers[i], f)
		filled += int64(len(f.Content))
	}
	many, err := labimage.Build(v1.Config{}, layers...)
	if err != nil {
		return nil, err
	}
	one, err := labimage.Build(v1.Config{User: "1"}, files)
	if err != nil {
		return nil, err
	}
	wide, err := zstdImage(files)
	if err != nil {
		return nil, err
	}
	var all []pushed
	for name, img := range map[string]v1.Image{fmt.Sprint(manyLayers, "-layers"): many, "1-layer": one, "2-layers-zstd": wide} {
		ref, err := r.Push("bench/"+name+":1", img)
		if err != nil {
			return nil, err
		}
		var compressed int64
		ls, err := img.Layers()
		if err != nil {
			return nil, err
		}
		for _, l := range ls {
			n, err := l.Size()
			if err != nil {
				return nil, err
			}
			compressed += n
		}
		fmt.Printf("%s: %d files, %.0f MB, %.0f MB compressed\n", name, len(files), float64(filled)/1e6, float64(compressed)/1e6)
		all = append(all, pushed{name, ref})
	}
	return all, nil
}

// widest is the largest window that gantry decompresses (as `zstd --long=25` makes it): the most memory.
const widest = 32 << 20

// zstdImage is an image of two layers, each larger than the window.
func zstdImage(files []labimage.Entry) (v1.Image, error) {
	var all []v1.Layer
	for entries := range slices.Chunk(files, (len(files)+1)/2) {
		data, err := labimage.Tar(entries...)
		if err != nil {
			return nil, err
		}
		l, err := labimage.ZstdLayer(data, widest)
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return labimage.Image(v1.Config{User: "2"}, all...)
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
