package labimage

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Fault may answer a request in the registry's place; it returns whether it did. It may also wrap
// what the registry would answer by calling next.
type Fault func(w http.ResponseWriter, r *http.Request, next http.Handler) bool

// Server is a registry on the loopback. What is pushed with Push goes past faults and credentials.
type Server struct {
	Host string // "127.0.0.1:port"
	CA   []byte // PEM of the certificate that TLS clients must trust; nil without TLS

	public *httptest.Server
	direct *httptest.Server

	mu       sync.Mutex
	fault    Fault          // guarded by mu
	requests map[string]int // guarded by mu: "GET /v2/…" to how often
	auth     *Auth          // constant after Serve
}

// Auth is what a registry demands. With Token set it is asked for as a bearer token, which the
// registry's own /token gives to whoever shows User and Password, or Refresh.
type Auth struct {
	User, Password string
	Refresh        string // identity token
	Token          string
}

// Config says how a registry is served.
type Config struct {
	Listen    string // "127.0.0.1:0" when empty
	TLS       bool
	ClientCAs *x509.CertPool // with TLS: who signed the certificates that clients must show
	Auth      *Auth
}

// Serve starts a registry; Close ends it.
func Serve(c Config) (*Server, error) {
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", c.Listen)
	if err != nil {
		return nil, err
	}
	quiet := log.New(io.Discard, "", 0) // the registry and net/http take no slog.Logger
	store := ranges(registry.New(registry.Logger(quiet)))
	s := &Server{Host: l.Addr().String(), requests: make(map[string]int), auth: c.Auth}
	s.direct = httptest.NewServer(store)
	s.public = httptest.NewUnstartedServer(s.handler(store))
	_ = s.public.Listener.Close()
	s.public.Listener = l
	s.public.Config.ErrorLog = quiet
	if c.TLS {
		s.public.TLS = demand(c.ClientCAs)
		s.public.StartTLS()
		s.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.public.Certificate().Raw})
	} else {
		s.public.Start()
	}
	return s, nil
}

// Registry starts a registry that ends with the test.
func Registry(t testing.TB, c Config) *Server {
	t.Helper()
	s, err := Serve(c)
	if err != nil {
		t.Fatalf("lab registry: %v", err)
	}
	t.Cleanup(s.Close)
	return s
}

// ServeAt serves what the registry has at a further address, one in another network namespace too. Close
// ends that as well.
func (s *Server) ServeAt(l net.Listener) {
	go func() { _ = s.public.Config.Serve(l) }()
}

// Close ends the registry and every connection to it.
func (s *Server) Close() {
	s.public.CloseClientConnections()
	s.direct.CloseClientConnections()
	_ = s.public.Config.Close()
	s.public.Close()
	s.direct.Close()
}

// SetFault makes f see every request that a client sends from now on; nil ends it.
func (s *Server) SetFault(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Requests is how often clients sent requests with this method whose path contains part.
func (s *Server) Requests(method, part string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for r, times := range s.requests {
		if strings.HasPrefix(r, method+" ") && strings.Contains(r, part) {
			n += times
		}
	}
	return n
}

// Push stores img as repository:tag and returns the reference under which clients find it.
func (s *Server) Push(repositoryTag string, img v1.Image) (string, error) {
	ref, err := s.target(repositoryTag)
	if err != nil {
		return "", err
	}
	if err := remote.Write(ref, img); err != nil {
		return "", fmt.Errorf("push %s: %w", repositoryTag, err)
	}
	return s.Host + "/" + repositoryTag, nil
}

// PushIndex is Push for an index.
func (s *Server) PushIndex(repositoryTag string, idx v1.ImageIndex) (string, error) {
	ref, err := s.target(repositoryTag)
	if err != nil {
		return "", err
	}
	if err := remote.WriteIndex(ref, idx); err != nil {
		return "", fmt.Errorf("push %s: %w", repositoryTag, err)
	}
	return s.Host + "/" + repositoryTag, nil
}

func (s *Server) target(repositoryTag string) (name.Reference, error) {
	ref, err := name.ParseReference(strings.TrimPrefix(s.direct.URL, "http://")+"/"+repositoryTag, name.Insecure)
	if err != nil {
		return nil, fmt.Errorf("push %s: %w", repositoryTag, err)
	}
	return ref, nil
}

func (s *Server) handler(store http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests[r.Method+" "+r.URL.Path]++
		fault := s.fault
		s.mu.Unlock()
		if s.auth != nil && s.authenticate(w, r) {
			return
		}
		if fault != nil && fault(w, r, store) {
			return
		}
		// The library's errors say not what they are, as the distribution spec wants it.
		w.Header().Set("Content-Type", "application/json")
		store.ServeHTTP(w, r)
	})
}

// authenticate answers r where it asks for a token or lacks what is demanded.
func (s *Server) authenticate(w http.ResponseWriter, r *http.Request) (answered bool) {
	user, password, basic := r.BasicAuth()
	known := basic && user == s.auth.User && password == s.auth.Password
	if r.URL.Path == "/token" {
		refresh := s.auth.Refresh != "" && r.PostFormValue("refresh_token") == s.auth.Refresh
		form := r.PostFormValue("username") == s.auth.User && r.PostFormValue("password") == s.auth.Password && s.auth.User != ""
		if !known && !refresh && !form {
			http.Error(w, "no", http.StatusUnauthorized)
			return true
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]string{"token": s.auth.Token, "access_token": s.auth.Token})
		return true
	}
	if s.auth.Token == "" {
		if known {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="lab"`)
	} else {
		if r.Header.Get("Authorization") == "Bearer "+s.auth.Token {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="lab",scope="repository:any:pull"`, s.public.URL))
	}
	http.Error(w, "unauthorized", http.StatusUnauthorized)
	return true
}
