// Package streaming serves exec, attach and port-forward over HTTP, at addresses that the CRI hands
// out: SPDY with the protocols of commands v1 to v4, as the kubelet speaks it to a runtime, and
// WebSocket with channels up to v5, as direct clients do. Port-forward comes over SPDY, over SPDY
// inside a WebSocket, and over channels for those ports that the request named.
//
// An address can be used once and expires. A client that vanishes ends what was run for it: the
// context of the backend's call lasts as long as the connection. A client that is slow holds back
// what it does not read, and nothing else.
package streaming

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"gantry/internal/engine"
)

const (
	defaultIdle     = 4 * time.Hour    // a connection on which nothing moves
	creationTimeout = 30 * time.Second // until a client has opened its streams
	headerTimeout   = 10 * time.Second // until a client has sent its request
	lingering       = 10 * time.Second // for the last bytes, after a request was served and while the client is silent
	lingeringMost   = 360              // times so long for a client that is not
)

// Backend is the slice of lifecycle that moves bytes. Calls return soon after ctx ended.
type Backend interface {
	Exec(ctx context.Context, id string, req *engine.Exec) (exitCode int32, err error)
	Attach(ctx context.Context, id string, s engine.IO) error
	PortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error
}

// Options say where to serve.
type Options struct {
	Listen string        // "127.0.0.1:0": port 0 takes a free one
	TLS    *tls.Config   // nil: plain HTTP
	Idle   time.Duration // how long a connection may be silent; 0: four hours
	Log    *slog.Logger  // nil: slog.Default
}

// Server serves streams. New makes one that listens, Serve answers, Close ends it.
type Server struct {
	backend Backend
	log     *slog.Logger
	idle    time.Duration
	ln      net.Listener
	http    *http.Server
	base    url.URL
	tokens  *tokens
	conns   connSet
	calls   calls
}

// New listens. The caller must Close the server, whether it was served or not.
func New(backend Backend, o Options) (*Server, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), "tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for streams: %w", err)
	}
	s := &Server{backend: backend, log: o.Log, idle: o.Idle, tokens: newTokens()}
	if s.idle == 0 {
		s.idle = defaultIdle
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.base = url.URL{Scheme: "http", Host: hostOf(o.Listen, ln.Addr())}
	s.ln = &listener{Listener: ln, conns: &s.conns}
	if o.TLS != nil {
		s.base.Scheme = "https"
		// An upgrade to SPDY or WebSocket exists in HTTP/1.1 only.
		conf := o.TLS.Clone()
		conf.NextProtos = []string{"http/1.1"}
		s.ln = tls.NewListener(s.ln, conf)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/exec/{token}", s.handle(s.serveExec))
	mux.HandleFunc("/attach/{token}", s.handle(s.serveAttach))
	mux.HandleFunc("/portforward/{token}", s.handle(s.servePortForward))
	s.http = &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       headerTimeout,
		ConnContext:       connContext,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// hostOf is how clients on this machine reach the server: by the name that was given for it, for a
// certificate may know no other, or by loopback where it listens everywhere.
func hostOf(listen string, addr net.Addr) string {
	host, _, _ := net.SplitHostPort(listen)
	_, port, _ := net.SplitHostPort(addr.String())
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port)
}

// Addr is the address that the server listens on.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Serve answers until Close; it then returns nil.
func (s *Server) Serve() error {
	if err := s.http.Serve(s.ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve streams: %w", err)
	}
	return nil
}

// Close ends every stream and waits until the backend has let go of them, or ctx ended.
func (s *Server) Close(ctx context.Context) error {
	err := errors.Join(s.http.Close(), ignoreClosed(s.ln.Close()))
	s.conns.closeAll()
	select {
	case <-s.calls.end():
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("wait for streams to end: %w", ctx.Err()))
	}
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// handle finds what the token stands for and lets serve have the connection. The context that serve
// gets ends with the connection.
func (s *Server) handle(serve func(ctx context.Context, w http.ResponseWriter, r *http.Request, req any) bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := connOf(r)
		if c == nil || !s.calls.begin() {
			http.Error(w, "this server is closed", http.StatusServiceUnavailable)
			return
		}
		defer s.calls.done()
		go c.watch(s.idle)
		req, ok := s.tokens.take(r.PathValue("token"))
		if !ok || !serve(c.ctx, w, r, req) { //nolint:contextcheck // c.ctx ends with the connection, r.Context() with the hijacking
			http.NotFound(w, r)
		}
	}
}

func (s *Server) serveExec(ctx context.Context, w http.ResponseWriter, r *http.Request, req any) bool {
	e, ok := req.(*execRequest)
	if !ok {
		return false
	}
	c, err := s.open(ctx, w, r, want{e.Stdin, e.Stdout, e.Stderr, e.Tty})
	if err != nil {
		s.log.Debug("no streams", "container", e.ContainerId, "error", err)
		return true
	}
	s.command(ctx, c, func(ctx context.Context, streams engine.IO) (int32, error) {
		return s.backend.Exec(ctx, e.ContainerId, &engine.Exec{Args: e.Cmd, TTY: e.Tty, IO: streams})
	})
	return true
}

func (s *Server) serveAttach(ctx context.Context, w http.ResponseWriter, r *http.Request, req any) bool {
	a, ok := req.(*attachRequest)
	if !ok {
		return false
	}
	c, err := s.open(ctx, w, r, want{a.Stdin, a.Stdout, a.Stderr, a.Tty})
	if err != nil {
		s.log.Debug("no streams", "container", a.ContainerId, "error", err)
		return true
	}
	s.command(ctx, c, func(ctx context.Context, streams engine.IO) (int32, error) {
		return 0, s.backend.Attach(ctx, a.ContainerId, streams)
	})
	return true
}

func (s *Server) servePortForward(ctx context.Context, w http.ResponseWriter, r *http.Request, req any) bool {
	p, ok := req.(*portForwardRequest)
	if !ok {
		return false
	}
	f := &forwarder{server: s, ctx: ctx, podID: p.PodSandboxId}
	if err := f.serve(w, r, p.Port); err != nil {
		s.log.Debug("no streams", "pod", p.PodSandboxId, "error", err)
	}
	return true
}

// calls counts the handlers, which return after all that they began: a hijacked connection is out
// of http.Server's sight.
type calls struct {
	mu     sync.Mutex
	closed bool // guarded by mu; no call begins afterwards
	wg     sync.WaitGroup
}

func (c *calls) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Add(1)
	return true
}

func (c *calls) done() { c.wg.Done() }

// end lets no further call begin. The channel is closed when the last one is done.
func (c *calls) end() <-chan struct{} {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		c.wg.Wait()
		close(ended)
	}()
	return ended
}
