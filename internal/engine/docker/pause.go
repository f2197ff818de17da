package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"gantry/internal/pod"
)

// builtinPause is the name of the pause image that is built in. No registry can be asked for it.
const builtinPause = "localhost/gantry-pause:1"

// pullPatience bounds the pull of a pause image, which a pod waits for, before the built-in one is taken.
const pullPatience = 30 * time.Second

// pauseImage returns the name of an image that is in Docker's store and whose process only waits: the
// one that is configured, pulled if need be, else the one that is built in. One that was there is not looked
// for again: see createPause.
func (e *Engine) pauseImage(ctx context.Context) (string, error) {
	e.pause.Lock()
	defer e.pause.Unlock()
	if e.pause.there != "" {
		return e.pause.there, nil
	}
	if ref := e.opts.PauseImage; ref != "" {
		err := e.fetchPause(ctx, ref)
		if err == nil {
			e.pause.there = ref
			return ref, nil
		}
		if errdefs.IsUnavailable(err) || ctx.Err() != nil {
			return "", err
		}
		e.log.Warn("the pause image can't be had, the built-in one is used", "image", ref, "error", err)
	}
	there, err := e.hasImage(ctx, builtinPause)
	if err == nil && !there {
		err = e.importPause(ctx)
	}
	if err == nil && e.opts.PauseImage == "" { // else that is looked for again
		e.pause.there = builtinPause
	}
	return builtinPause, err
}

// createPause creates a pause container. Where somebody has removed its image, which was there, that is
// looked for again.
func (e *Engine) createPause(ctx context.Context, key pod.Key, opts client.ContainerCreateOptions) (id string, made bool, err error) {
	for range 2 {
		if opts.Config.Image, err = e.pauseImage(ctx); err != nil {
			return "", false, err
		}
		id, made, err = e.create(ctx, key, opts)
		if !errdefs.IsNotFound(err) {
			break
		}
		e.pause.Lock()
		e.pause.there = ""
		e.pause.Unlock()
	}
	if err != nil {
		return "", false, fmt.Errorf("create the pause container: %w", err)
	}
	return id, made, nil
}

func (e *Engine) hasImage(ctx context.Context, ref string) (bool, error) {
	_, err := call(ctx, e.daemon, func(ctx context.Context) (client.ImageInspectResult, error) {
		return e.daemon.api.ImageInspect(ctx, ref)
	})
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

func (e *Engine) fetchPause(ctx context.Context, ref string) error {
	there, err := e.hasImage(ctx, ref)
	if err != nil || there {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, pullPatience)
	defer cancel()
	r, err := e.daemon.api.ImagePull(ctx, ref, client.ImagePullOptions{})
	if err != nil {
		return fmt.Errorf("pull: %w", e.daemon.classify(err))
	}
	defer func() { _ = r.Close() }()
	return r.Wait(ctx)
}

// importPause loads the built-in image.
func (e *Engine) importPause(ctx context.Context) error {
	program, err := pauseProgram(runtime.GOARCH)
	if err != nil {
		return err
	}
	archive, err := pauseArchive(program, runtime.GOARCH)
	if err != nil {
		return err
	}
	_, err = call(ctx, e.daemon, func(ctx context.Context) (n int64, err error) {
		r, err := e.daemon.api.ImageLoad(ctx, bytes.NewReader(archive))
		if err != nil {
			return 0, err
		}
		defer func() { _ = r.Close() }()
		return io.Copy(io.Discard, r)
	})
	if err != nil {
		return fmt.Errorf("import the built-in pause image: %w", err)
	}
	return nil
}

// pauseArchive is an image of one file in the form of `docker save`, the same bytes every time.
func pauseArchive(program []byte, arch string) ([]byte, error) {
	layer, err := tarOf(map[string][]byte{"pause": program}, "pause")
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(map[string]any{
		"architecture": arch, "os": "linux", "created": "2026-01-01T00:00:00Z",
		"config": map[string]any{"Entrypoint": []string{"/pause"}, "Labels": map[string]string{"io.gantry.pause": "builtin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return nil, fmt.Errorf("built-in pause image: %w", err)
	}
	sum = sha256.Sum256(config)
	name := hex.EncodeToString(sum[:]) + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": name, "RepoTags": []string{builtinPause}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return nil, fmt.Errorf("built-in pause image: %w", err)
	}
	return tarOf(map[string][]byte{name: config, "layer.tar": layer, "manifest.json": manifest}, name, "layer.tar", "manifest.json")
}

func tarOf(files map[string][]byte, order ...string) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range order {
		h := &tar.Header{Name: name, Mode: 0o555, Size: int64(len(files[name])), Typeflag: tar.TypeReg}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("built-in pause image: %w", err)
		}
		if _, err := w.Write(files[name]); err != nil {
			return nil, fmt.Errorf("built-in pause image: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("built-in pause image: %w", err)
	}
	return buf.Bytes(), nil
}
