package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"gantry/internal/bench"
)

// pullFloor does the plain work of a pull of the first image, its layers one after the other and each act
// alone, and all of it together as a pull does it, two layers at a time.
func pullFloor(ctx context.Context, m *measurement, dir string, to bench.Scope) error {
	image := m.registry.big[0]
	repository := "http://" + m.registry.Host + "/v2/bench/big0-0/blobs/"
	var compressed, plain [][]byte
	for _, l := range image.layers {
		for from, all := range map[*[][]byte]func() (io.ReadCloser, error){&compressed: l.Compressed, &plain: l.Uncompressed} {
			r, err := all()
			if err != nil {
				return err
			}
			data, err := io.ReadAll(r)
			if err = errors.Join(err, r.Close()); err != nil {
				return err
			}
			*from = append(*from, data)
		}
	}
	acts := []struct {
		name string
		do   func(i int) error
	}{
		{"compressed bytes over HTTP", func(i int) error { return fetch(ctx, repository, image.layers[i], io.Discard) }},
		{"SHA-256 of the compressed bytes", func(i int) error { return hash(compressed[i]) }},
		{"inflate by the library", func(i int) error { return inflate(bytes.NewReader(compressed[i]), io.Discard) }},
		{"inflate by gzip -dc", func(i int) error { return filter(ctx, compressed[i], "gzip", "-dc") }},
		{"SHA-256 of the plain bytes", func(i int) error { return hash(plain[i]) }},
		{"tar into files", func(i int) error { return untar(ctx, bytes.NewReader(plain[i]), filepath.Join(dir, "alone")) }},
		{"what was written to the disk: syncfs", func(i int) error {
			if i+1 < len(plain) {
				return nil
			}
			return syncTree(dir)
		}},
	}
	for _, a := range acts {
		unix.Sync()
		if a.name == acts[len(acts)-1].name { // what tar wrote, not yet on the disk
			if err := untar(ctx, bytes.NewReader(bytes.Join(plain, nil)), filepath.Join(dir, "unsynced")); err != nil {
				return err
			}
		}
		began := time.Now()
		for i := range image.layers {
			if err := a.do(i); err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
		}
		to.Add(image.name+": "+a.name, "s", time.Since(began).Seconds())
	}
	for range 3 {
		if err := whole(ctx, image, repository, dir, to); err != nil {
			return err
		}
	}
	return nil
}

// whole is the work as a pull does it: from the registry to files on the disk, everything checked.
func whole(ctx context.Context, image pull, repository, dir string, to bench.Scope) error {
	top := filepath.Join(dir, "whole")
	unix.Sync()
	began := time.Now()
	var g errgroup.Group
	g.SetLimit(2)
	for i, l := range image.layers {
		g.Go(func() error { return layer(ctx, repository, l, filepath.Join(top, fmt.Sprint(i))) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	to.Add(image.name+": "+plainWork+", no sync", "s", time.Since(began).Seconds())
	if err := syncTree(top); err != nil {
		return err
	}
	to.Add(image.name+": "+plainWork, "s", time.Since(began).Seconds())
	return os.RemoveAll(top)
}

// plainWork is what bench.Judge looks for as the limit of a pull.
const plainWork = bench.PlainPull

func layer(ctx context.Context, repository string, l v1.Layer, dir string) error {
	pr, pw := io.Pipe()
	tr, tw := io.Pipe()
	var g errgroup.Group
	g.Go(func() error {
		err := fetch(ctx, repository, l, io.MultiWriter(pw, sha256.New()))
		return errors.Join(err, pw.CloseWithError(err))
	})
	g.Go(func() error {
		err := inflate(pr, io.MultiWriter(tw, sha256.New()))
		return errors.Join(err, pr.Close(), tw.CloseWithError(err))
	})
	g.Go(func() error { return errors.Join(untar(ctx, tr, dir), tr.Close()) })
	return g.Wait()
}

func fetch(ctx context.Context, repository string, l v1.Layer, to io.Writer) error {
	digest, err := l.Digest()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, repository+digest.String(), http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", req.URL, resp.Status)
	} else {
		_, err = io.Copy(to, resp.Body)
	}
	return errors.Join(err, resp.Body.Close())
}

func hash(data []byte) error {
	_ = sha256.Sum256(data)
	return nil
}

func inflate(from io.Reader, to io.Writer) error {
	z, err := gzip.NewReader(from)
	if err == nil {
		_, err = z.WriteTo(to)
	}
	return err
}

func filter(ctx context.Context, data []byte, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(data), os.Stderr
	return cmd.Run() // standard output is /dev/null
}

// untar lets tar write files, all layers of an image to one directory or each to its own.
func untar(ctx context.Context, from io.Reader, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "tar", "-x", "-i", "-C", dir) // -i: one archive after the other
	cmd.Stdin, cmd.Stderr = from, os.Stderr
	return cmd.Run()
}

func syncTree(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}
