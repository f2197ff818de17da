package docker

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"

	"gantry/internal/pod"
)

// stall is how long a pull may say nothing before it is given up.
const stall = 5 * time.Minute

// pulls joins those of one image with the same credentials. A pull goes on when its callers have left:
// the kubelet asks again, and joins it.
type pulls struct {
	mu      sync.Mutex
	running map[string]*pull // by reference and credentials; guarded by mu
}

type pull struct {
	done chan struct{} // closed when id and err are set
	id   string
	err  error
}

// Pull has Docker fetch an image.
func (s *Images) Pull(ctx context.Context, p *pod.Pull) (string, error) {
	ref, err := canonical(p.Ref)
	if err != nil {
		return "", err
	}
	auth, err := credentials(p.Auth)
	if err != nil {
		return "", err
	}
	one := s.join(ctx, ref+" "+auth, func(ctx context.Context) (string, error) { return s.fetch(ctx, ref, auth, p.Progress) })
	select {
	case <-one.done:
		return one.id, one.err
	case <-ctx.Done():
		return "", fmt.Errorf("pull %s goes on: %w", p.Ref, context.Cause(ctx))
	}
}

func (s *Images) join(ctx context.Context, key string, fetch func(context.Context) (string, error)) *pull {
	s.pulls.mu.Lock()
	defer s.pulls.mu.Unlock()
	if p := s.pulls.running[key]; p != nil {
		return p
	}
	p := &pull{done: make(chan struct{})}
	s.pulls.running[key] = p
	own := context.WithoutCancel(ctx)
	go func() {
		p.id, p.err = fetch(own)
		s.pulls.mu.Lock()
		delete(s.pulls.running, key)
		s.pulls.mu.Unlock()
		close(p.done)
	}()
	return p
}

// fetch pulls and returns the id of what came.
func (s *Images) fetch(ctx context.Context, ref, auth string, progress func(pod.LayerProgress)) (string, error) {
	d := s.engine.daemon
	_, err := call(ctx, d, func(ctx context.Context) (struct{}, error) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		stalled := time.AfterFunc(stall, func() {
			cancel(fmt.Errorf("docker has said nothing of it for %v: %w", stall, errdefs.ErrUnavailable))
		})
		defer stalled.Stop()
		r, err := d.api.ImagePull(ctx, ref, client.ImagePullOptions{RegistryAuth: auth})
		if err != nil {
			return struct{}{}, err
		}
		defer func() { _ = r.Close() }()
		for m, err := range r.JSONMessages(ctx) {
			if err != nil {
				return struct{}{}, errors.Join(err, context.Cause(ctx))
			}
			if m.Error != nil {
				return struct{}{}, m.Error
			}
			stalled.Reset(stall)
			report(&m, progress)
		}
		return struct{}{}, nil
	})
	s.engine.images.changed()
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", ref, err)
	}
	img, err := s.Get(ctx, ref)
	if err != nil {
		return "", err
	}
	return img.ID, nil
}

// report passes on how far a layer has come. Docker names layers by the first digits of their digests.
func report(m *jsonstream.Message, progress func(pod.LayerProgress)) {
	if progress == nil || m.Progress == nil || m.ID == "" || m.Status != "Downloading" {
		return
	}
	progress(pod.LayerProgress{Digest: m.ID, Done: m.Progress.Current, Total: m.Progress.Total})
}

// credentials are in the form of Docker's header; "" is none.
func credentials(a *pod.Auth) (string, error) {
	if a == nil || *a == (pod.Auth{}) {
		return "", nil
	}
	c := registry.AuthConfig{
		Username: a.Username, Password: a.Password, ServerAddress: a.ServerAddress,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
	}
	if a.Auth != "" && c.Username == "" {
		plain, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			return "", fmt.Errorf("auth: not base64: %w", errdefs.ErrInvalidArgument)
		}
		var ok bool
		c.Username, c.Password, ok = strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
		if !ok {
			return "", fmt.Errorf("auth: not user:password: %w", errdefs.ErrInvalidArgument)
		}
	}
	encoded, err := authconfig.Encode(c)
	if err != nil {
		return "", fmt.Errorf("auth: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	return encoded, nil
}
