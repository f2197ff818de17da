// Package streaming serves exec, attach and port-forward over HTTP, at addresses that the CRI
// hands out: SPDY with the remotecommand protocols v1 to v4, as the kubelet speaks it to a runtime,
// and WebSocket with channels up to v4. k8s.io/cri-streaming speaks both protocols; this package
// owns the addresses, the connections and their ends.
//
// An address can be used once and expires. A client that vanishes ends what was run for it: the
// context of the backend's call lasts as long as the connection.
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

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"gantry/internal/engine"
)

const (
	idleTimeout     = 4 * time.Hour    // a connection on which nothing moves
	creationTimeout = 30 * time.Second // until a client has made its streams
	headerTimeout   = 10 * time.Second // until a client has sent its request
	lingering       = 10 * time.Second // for the last bytes, after a request was served
)

// Backend is the slice of lifecycle that moves bytes. Calls return soon after ctx ended.
type Backend interface {
	Exec(ctx context.Context, id string, req *engine.Exec) (exitCode int32, err error)
	Attach(ctx context.Context, id string, s engine.IO) error
	PortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error
}

// Options say where to serve.
type Options struct {
	Listen string       // "127.0.0.1:0": port 0 takes a free one
	TLS    *tls.Config  // nil: plain HTTP
	Log    *slog.Logger // nil: slog.Default
}

// Server serves streams. New makes one that listens, Serve answers, Close ends it.
type Server struct {
	backend Backend
	log     *slog.Logger
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
	s := &Server{backend: backend, log: o.Log, tokens: newTokens()}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.base = url.URL{Scheme: "http", Host: ln.Addr().String()}
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
		c := connOf(r.Context())
		if c == nil || !s.calls.begin() {
			http.Error(w, "this server is closed", http.StatusServiceUnavailable)
			return
		}
		defer s.calls.done()
		go c.watch()
		req, ok := s.tokens.take(r.PathValue("token"))
		if !ok || !serve(c.ctx, w, r, req) { //nolint:contextcheck // c.ctx ends with the connection, r.Context() with the hijacking
			http.NotFound(w, r)
			return
		}
		// The protocol's own close comes first; it does not when a client was half way through.
		c.closeWithin(lingering)
	}
}

func (s *Server) serveExec(ctx context.Context, w http.ResponseWriter, r *http.Request, req any) bool {
	e, ok := req.(*execRequest)
	if ok {
		remotecommand.ServeExec(w, r, &session{s, ctx, e.Stdin, e.Stdout, e.Stderr}, "", "", e.ContainerId, e.Cmd,
			&remotecommand.Options{Stdin: e.Stdin, Stdout: e.Stdout, Stderr: e.Stderr, TTY: e.Tty},
			idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
	}
	return ok
}

func (s *Server) serveAttach(ctx context.Context, w http.ResponseWriter, r *http.Request, req any) bool {
	a, ok := req.(*attachRequest)
	if ok {
		remotecommand.ServeAttach(w, r, &session{s, ctx, a.Stdin, a.Stdout, a.Stderr}, "", "", a.ContainerId,
			&remotecommand.Options{Stdin: a.Stdin, Stdout: a.Stdout, Stderr: a.Stderr, TTY: a.Tty},
			idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
	}
	return ok
}

func (s *Server) servePortForward(ctx context.Context, w http.ResponseWriter, r *http.Request, req any) bool {
	p, ok := req.(*portForwardRequest)
	if ok {
		portforward.ServePortForward(w, r, &session{server: s, ctx: ctx}, p.PodSandboxId, "",
			&portforward.V4Options{Ports: p.Port}, idleTimeout, creationTimeout, portforward.SupportedProtocols)
	}
	return ok
}

// calls counts the calls of the backend and of handlers: a hijacked connection is out of
// http.Server's sight.
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
