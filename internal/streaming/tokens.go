package streaming

import (
	"crypto/rand"
	"fmt"
	"path"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	tokenLife = time.Minute
	maxTokens = 1000 // given out and neither used nor expired
)

// The requests that a token can stand for.
type (
	execRequest        = runtime.ExecRequest
	attachRequest      = runtime.AttachRequest
	portForwardRequest = runtime.PortForwardRequest
)

// Exec returns an address at which req can be had once, within a minute. With a thousand such
// addresses unused it fails with errdefs.ErrResourceExhausted.
func (s *Server) Exec(req *runtime.ExecRequest) (string, error) { return s.address("exec", req) }

// Attach is like Exec.
func (s *Server) Attach(req *runtime.AttachRequest) (string, error) { return s.address("attach", req) }

// PortForward is like Exec.
func (s *Server) PortForward(req *runtime.PortForwardRequest) (string, error) {
	return s.address("portforward", req)
}

func (s *Server) address(kind string, req proto.Message) (string, error) {
	token, err := s.tokens.give(req)
	if err != nil {
		return "", err
	}
	u := s.base
	u.Path = path.Join("/", kind, token)
	return u.String(), nil
}

// tokens holds what was promised to whoever comes with a token.
type tokens struct {
	mu      sync.Mutex
	pending map[string]pending // guarded by mu
}

type pending struct {
	req     any
	expires time.Time
}

func newTokens() *tokens { return &tokens{pending: make(map[string]pending)} }

func (t *tokens) give(req any) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if len(t.pending) >= maxTokens {
		for k, p := range t.pending {
			if now.After(p.expires) {
				delete(t.pending, k)
			}
		}
	}
	if len(t.pending) >= maxTokens {
		return "", fmt.Errorf("%d addresses for streams are unused: %w", maxTokens, errdefs.ErrResourceExhausted)
	}
	token := rand.Text()
	t.pending[token] = pending{req, now.Add(tokenLife)}
	return token, nil
}

func (t *tokens) take(token string) (any, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.pending[token]
	delete(t.pending, token)
	if !ok || time.Now().After(p.expires) {
		return nil, false
	}
	return p.req, true
}
