package remote

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

// credentials are what a client offers a registry. They are shown to the registry of the reference
// and to the mirrors that hosts.toml names for it, never to a host that one of those redirects to.
type credentials struct {
	user, secret string
	token        string // a registry token, sent as it is
	server       string // the only host that may see them; "" is any configured one

	mu      sync.Mutex
	trusted map[string]bool // guarded by mu
}

func newCredentials(domain string, a *pod.Auth) (*credentials, error) {
	c := &credentials{trusted: make(map[string]bool)}
	if a == nil {
		return c, nil
	}
	c.server = serverHost(a.ServerAddress)
	if c.server == domain || domain == "docker.io" && strings.HasSuffix(c.server, ".docker.io") {
		c.server = "" // names the registry itself: its mirrors stand for it
	}
	switch {
	case a.Username != "":
		c.user, c.secret = a.Username, a.Password
	case a.IdentityToken != "":
		c.secret = a.IdentityToken
	case a.RegistryToken != "":
		c.token = a.RegistryToken
	case a.Auth != "":
		plain, err := base64.StdEncoding.DecodeString(a.Auth)
		user, secret, ok := strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
		if err != nil || !ok {
			return nil, fmt.Errorf("auth is not base64 of user:password: %w", errdefs.ErrInvalidArgument)
		}
		c.user, c.secret = user, secret
	}
	return c, nil
}

// serverHost is the host of a server address, which may be a URL or a bare host.
func serverHost(address string) string {
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		return u.Host
	}
	host, _, _ := strings.Cut(address, "/")
	return host
}

// trust lets hosts see the credentials and installs the registry token in them.
func (c *credentials) trust(hosts []docker.RegistryHost) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range hosts {
		c.trusted[hosts[i].Host] = c.server == "" || c.server == hosts[i].Host
		if c.token != "" {
			hosts[i].Authorizer = bearer{c}
		}
	}
}

func (c *credentials) trusts(host string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.trusted[host]
}

func (c *credentials) basic(host string) (user, secret string, err error) {
	if !c.trusts(host) {
		return "", "", nil
	}
	return c.user, c.secret, nil
}

// bearer sends a registry token as it was given.
type bearer struct{ c *credentials }

func (b bearer) Authorize(_ context.Context, req *http.Request) error {
	if b.c.trusts(req.URL.Host) {
		req.Header.Set("Authorization", "Bearer "+b.c.token)
	}
	return nil
}

func (b bearer) AddResponses(context.Context, []*http.Response) error {
	return fmt.Errorf("the registry token was refused: %w", docker.ErrInvalidAuthorization)
}
