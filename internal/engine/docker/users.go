package docker

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
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

// of returns what is known of an image.
func (a *accounts) of(image string) (accountFiles, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	files, known := a.byImage[image]
	return files, known
}

// identity is a container's user and groups as Docker is told them.
type identity struct {
	user   string
	groups []string
}

func identityOf(c *container.Config, host *container.HostConfig) identity {
	return identity{c.User, host.GroupAdd}
}

func (i identity) equal(other identity) bool {
	return i.user == other.user && slices.Equal(i.groups, other.groups)
}

// createAs makes the container of a request. Docker adds the groups of the image's /etc/group where it is told no
// group, and none where it is told one; in the CRI a policy decides that. Where the two may differ Docker is told
// every id. For that the image's accounts must be known: they are read from a first container of the image,
// which is made anew if they make a difference.
func (e *Engine) createAs(ctx context.Context, req *engine.Create, opts client.ContainerCreateOptions) (string, error) {
	key, image := req.Spec.Key, req.Image.ID
	exact := req.Spec.Security.StrictGroups || strings.Contains(cmp.Or(opts.Config.User, req.Image.User), ":")
	files, known := e.accounts.of(image)
	if exact && known {
		if err := identify(&opts, files, req); err != nil {
			return "", err
		}
	}
	id, fresh, err := e.create(ctx, key, opts)
	if err != nil || !exact || known && fresh {
		return id, err
	}
	told := identityOf(opts.Config, opts.HostConfig)
	if !fresh { // an earlier try may have told Docker less
		c, unknown := e.inspect(ctx, id)
		if unknown != nil {
			return "", unknown
		}
		told = identityOf(c.Config, c.HostConfig)
	}
	if files, err = e.accountsOf(ctx, id, image); err != nil {
		return "", err
	}
	if err = identify(&opts, files, req); err != nil || told.equal(identityOf(opts.Config, opts.HostConfig)) {
		return id, err
	}
	if err = e.remove(ctx, id); err != nil {
		return "", err
	}
	id, _, err = e.create(ctx, key, opts)
	return id, err
}

// identify has a container run as exactly whom the request says in an image with these accounts.
func identify(opts *client.ContainerCreateOptions, files accountFiles, req *engine.Create) error {
	u, err := files.find(req)
	if err != nil {
		return err
	}
	opts.Config.User = fmt.Sprintf("%d:%d", u.UID, u.GID)
	opts.HostConfig.GroupAdd = nil
	for _, gid := range u.Groups {
		if gid != u.GID {
			opts.HostConfig.GroupAdd = append(opts.HostConfig.GroupAdd, strconv.FormatUint(uint64(gid), 10))
		}
	}
	return nil
}

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
	return files.find(req)
}

func (files accountFiles) find(req *engine.Create) (ocispec.User, error) {
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
	if files, known := e.accounts.of(image); known {
		return files, nil
	}
	files := accountFiles{}
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
