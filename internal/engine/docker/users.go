package docker

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"gantry/internal/engine"
	"gantry/internal/ocispec"
	"gantry/internal/pod"
)

const (
	accountsMost = 1 << 20 // bytes of /etc/passwd or /etc/group that are read
	imagesMost   = 256     // images whose accounts are remembered
)

// accounts remembers /etc/passwd and /etc/group of images: Docker gives them out of a container that was
// made of the image, and it takes two calls.
type accounts struct {
	mu      sync.Mutex
	byImage map[string]accountFiles // guarded by mu
}

type accountFiles map[string][]byte // by path

// user finds out who the main process of a new container will run as: Docker does not say it. Nil where
// it cannot be known.
func (e *Engine) user(ctx context.Context, id string, req *engine.Create) *pod.User {
	u, err := e.findUser(ctx, id, req)
	if err != nil {
		e.log.Debug("nobody knows who a container runs as", "container", req.Spec.Key, "error", err)
		return nil
	}
	out := &pod.User{UID: int64(u.UID), GID: int64(u.GID)}
	for _, g := range u.Groups {
		out.Groups = append(out.Groups, int64(g))
	}
	return out
}

func (e *Engine) findUser(ctx context.Context, id string, req *engine.Create) (ocispec.User, error) {
	files, err := e.accountsOf(ctx, id, req.Image.ID)
	if err != nil {
		return ocispec.User{}, err
	}
	root, err := os.MkdirTemp("", "gantry-accounts")
	if err != nil {
		return ocispec.User{}, err
	}
	defer func() { _ = os.RemoveAll(root) }()
	if err = os.Mkdir(filepath.Join(root, "etc"), 0o700); err != nil {
		return ocispec.User{}, err
	}
	for name, content := range files {
		if err = os.WriteFile(filepath.Join(root, name), content, 0o600); err != nil {
			return ocispec.User{}, err
		}
	}
	return ocispec.FindUser(root, &req.Spec.Security, req.Image.User)
}

func (e *Engine) accountsOf(ctx context.Context, id, image string) (accountFiles, error) {
	e.accounts.mu.Lock()
	files, ok := e.accounts.byImage[image]
	e.accounts.mu.Unlock()
	if ok {
		return files, nil
	}
	files = accountFiles{}
	for _, name := range []string{"/etc/passwd", "/etc/group"} {
		content, err := e.copyFile(ctx, id, name)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		files[name] = content
	}
	e.accounts.mu.Lock()
	defer e.accounts.mu.Unlock()
	if len(e.accounts.byImage) >= imagesMost {
		clear(e.accounts.byImage)
	}
	e.accounts.byImage[image] = files
	return files, nil
}

// copyFile reads one file of a container as it was made.
func (e *Engine) copyFile(ctx context.Context, id, name string) ([]byte, error) {
	return call(ctx, e.daemon, func(ctx context.Context) ([]byte, error) {
		r, err := e.daemon.api.CopyFromContainer(ctx, id, client.CopyFromContainerOptions{SourcePath: name})
		if err != nil {
			return nil, err
		}
		defer func() { _ = r.Content.Close() }()
		t := tar.NewReader(r.Content)
		h, err := t.Next()
		if errors.Is(err, io.EOF) || err == nil && (h.Typeflag != tar.TypeReg || h.Name != path.Base(name)) {
			return nil, fmt.Errorf("%s is no file: %w", name, errdefs.ErrNotFound)
		}
		if err != nil {
			return nil, err
		}
		return io.ReadAll(io.LimitReader(t, accountsMost))
	})
}
