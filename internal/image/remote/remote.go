// Package remote reads images from registries: it finds the hosts that certs.d names for a registry,
// authenticates as the CRI asks, and delivers manifests and blobs whole, verified, or with an error
// whose class says whose fault it is.
//
// Errors: ErrNotFound (no such image), ErrUnauthenticated and ErrPermissionDenied (credentials),
// ErrUnavailable (the registry does not answer, answers 429 or 5xx, or sends nothing for as long as
// Options.Stall), ErrDataLoss (what came is not what its digest or length promised),
// ErrFailedPrecondition (what answered is no registry), ErrInvalidArgument (the configuration).
package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerconfig "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/log"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus" //nolint:depguard // only to silence the library
	"golang.org/x/time/rate"

	"gantry/internal/pod"
)

// Options say how registries are spoken to. The zero value works.
type Options struct {
	// CertsDir holds <host>/hosts.toml in containerd's format; "" configures nothing.
	CertsDir string
	// Stall is how long a registry may send no byte; 0 is one minute.
	Stall time.Duration
	// Attempts is how often a request that made no progress is tried; 0 is 4.
	Attempts int
	// Backoff is the pause before the second attempt, doubled for each further one, and five times as long
	// where the registry is busy (408, 429, 503) and does not say when to come back; 0 is 200 ms.
	Backoff time.Duration
	// Bandwidth is how many bytes a second all blobs together take; 0 is no limit.
	Bandwidth int64
}

// burst is how many bytes are read at once where bandwidth is limited.
const burst = 64 << 10

// Client opens sessions with registries.
type Client struct {
	opts  Options
	rate  *rate.Limiter // of blobs' bytes; nil is no limit
	quiet *log.Entry    // the registry library's own log, which repeats what the errors say
}

// New returns a client.
func New(o Options) *Client {
	if o.Stall <= 0 {
		o.Stall = time.Minute
	}
	if o.Attempts <= 0 {
		o.Attempts = 4
	}
	if o.Backoff <= 0 {
		o.Backoff = 200 * time.Millisecond
	}
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	c := &Client{opts: o, quiet: logrus.NewEntry(quiet)}
	if o.Bandwidth > 0 {
		c.rate = rate.NewLimiter(rate.Limit(o.Bandwidth), burst)
	}
	return c
}

// Session reads one repository with one set of credentials. Its methods may be called side by side.
type Session struct {
	client   *Client
	ref      string // canonical, with tag or digest
	resolver remotes.Resolver

	mu         sync.Mutex
	hosts      map[string][]docker.RegistryHost // guarded by mu: one set of connections a session
	transports []*http.Transport                // guarded by mu
	fetch      remotes.Fetcher                  // guarded by mu
}

// Open prepares a session for ref, which has a tag or a digest. Nothing is sent yet.
func (c *Client) Open(ref reference.Named, auth *pod.Auth) (*Session, error) {
	creds, err := newCredentials(reference.Domain(ref), auth)
	if err != nil {
		return nil, err
	}
	s := &Session{client: c, ref: ref.String(), hosts: make(map[string][]docker.RegistryHost)}
	ho := dockerconfig.HostOptions{
		Credentials: creds.basic,
		UpdateClient: func(hc *http.Client) error {
			if t, ok := hc.Transport.(*http.Transport); ok {
				s.transports = append(s.transports, t) // configured holds mu
				hc.Transport = polite{t}
			}
			return nil
		},
	}
	if c.opts.CertsDir != "" {
		ho.HostDir = hostDir(c.opts.CertsDir)
	}
	configure := dockerconfig.ConfigureHosts(log.WithLogger(context.Background(), c.quiet), ho)
	s.resolver = docker.NewResolver(docker.ResolverOptions{
		Hosts:   func(name string) ([]docker.RegistryHost, error) { return s.configured(name, configure, creds) },
		Headers: http.Header{"User-Agent": []string{"gantry"}},
	})
	return s, nil
}

// configured returns the hosts of registry name, the same connections at every call.
func (s *Session) configured(name string, configure docker.RegistryHosts, creds *credentials) ([]docker.RegistryHost, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if hosts, ok := s.hosts[name]; ok {
		return hosts, nil
	}
	hosts, err := configure(name)
	if err != nil {
		return nil, configError{fmt.Errorf("configuration of registry %s: %w", name, err)}
	}
	creds.trust(hosts)
	s.hosts[name] = hosts
	return hosts, nil
}

// Close gives the connections back.
func (s *Session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.transports {
		t.CloseIdleConnections()
	}
}

// Resolve asks the registry what the session's reference stands for now.
func (s *Session) Resolve(ctx context.Context) (ocispec.Descriptor, error) {
	var desc ocispec.Descriptor
	err := s.client.retry(ctx, func(ctx context.Context) (err error) {
		_, desc, err = s.resolver.Resolve(ctx, s.ref)
		return err
	})
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("resolve %s: %w", s.ref, err)
	}
	return desc, nil
}

// Read returns the content of desc, at most limit bytes, verified.
func (s *Session) Read(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if desc.Size > limit {
		return nil, fmt.Errorf("%s: %d bytes, more than the %d allowed: %w", desc.Digest, desc.Size, limit, errTooLarge)
	}
	b := s.Blob(ctx, desc, nil)
	defer func() { _ = b.Close() }()
	return io.ReadAll(b)
}

func (s *Session) fetcher(ctx context.Context) (remotes.Fetcher, error) {
	s.mu.Lock()
	f := s.fetch
	s.mu.Unlock()
	if f != nil {
		return f, nil
	}
	f, err := s.resolver.Fetcher(ctx, s.ref)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fetch == nil {
		s.fetch = f
	}
	return s.fetch, nil
}

// retry runs try until it succeeds, fails for good or has been tried often enough. Each attempt
// has the stall deadline.
func (c *Client) retry(ctx context.Context, try func(context.Context) error) error {
	for attempt := 1; ; attempt++ {
		err := c.attempt(ctx, try)
		if err == nil || !temporary(err) || attempt >= c.opts.Attempts {
			return err
		}
		if err = c.pause(ctx, attempt, err); err != nil {
			return err
		}
	}
}

func (c *Client) attempt(ctx context.Context, try func(context.Context) error) error {
	w := c.watch(log.WithLogger(ctx, c.quiet))
	defer w.end()
	w.start()
	return w.classify(try(w.ctx)) //nolint:contextcheck // a child of ctx
}

// pause waits before the attempt after the given one, which ended with failure.
func (c *Client) pause(ctx context.Context, attempt int, failure error) error {
	t := time.NewTimer(c.backoff(attempt, failure))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// hostDir finds a registry's directory below root. A hosts.toml that is malformed is an error: the
// library would log it and go on as if the file were not there, past the mirrors.
func hostDir(root string) func(string) (string, error) {
	find := dockerconfig.HostDirFromRoot(root)
	return func(host string) (string, error) {
		dir, err := find(host)
		if err != nil || dir == "" {
			return dir, err
		}
		data, err := os.ReadFile(filepath.Join(dir, "hosts.toml"))
		if errors.Is(err, os.ErrNotExist) {
			return dir, nil
		}
		if err != nil {
			return "", err
		}
		var keys map[string]any
		if err = toml.Unmarshal(data, &keys); err != nil {
			return "", fmt.Errorf("%s: %w", filepath.Join(dir, "hosts.toml"), err)
		}
		return dir, nil
	}
}
