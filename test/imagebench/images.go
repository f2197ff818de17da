package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/labimage"
)

// pushed is an image in the registry.
type pushed struct{ name, ref string }

const (
	manyLayers  = 9
	largestFile = 16 << 20
)

// pushAll pushes an image of nine layers and one of a single layer, of the same files.
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
	var all []pushed
	for name, img := range map[string]v1.Image{fmt.Sprint(manyLayers, "-layers"): many, "1-layer": one} {
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
