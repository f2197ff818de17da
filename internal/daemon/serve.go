package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"gantry/internal/admin"
	"gantry/internal/config"
	"gantry/internal/cri"
	"gantry/internal/lifecycle"
	"gantry/internal/observe"
	"gantry/internal/pod"
)

const headerTimeout = 10 * time.Second // until a client has sent its request

// serve opens the sockets and answers until ctx ends or one of the servers breaks.
func (s *server) serve(ctx context.Context, p *parts) error {
	broken := make(chan error, 4)              // one for each server, so that none waits
	streams, err := s.listenStreams(p.manager) //nolint:contextcheck // it listens, which needs none
	if err != nil {
		return err
	}
	go func() { broken <- streams.Serve() }()

	var pulls admin.Pulls
	build := admin.ReadBuild(admin.Build{Version: config.Version, StateDir: s.opts.State, Streaming: streams.Addr().String()})
	if err = s.serveAdmin(ctx, admin.Handler(admin.Parts{Pulls: &pulls, Build: build, Images: p.images, Plugins: p.plugins.list, Foreign: foreign(p.docker)}), broken); err != nil {
		return err
	}
	if err = observe.WatchPulls(pulls.List, s.registry); err != nil {
		return err
	}
	if err = observe.WatchNode(p.manager, p.keeper, s.registry); err != nil {
		return err
	}
	if err = s.serveMetrics(ctx, p.manager, broken); err != nil {
		return err
	}
	measured, err := newMeasuredStreams(p.manager, s.registry)
	if err != nil {
		return err
	}
	reload := s.newReloader(p)
	service := cri.New(cri.Options{
		Pods: p.manager, Containers: p.manager, Checkpoints: p.manager, Resizer: p.manager, Views: p.manager,
		Statistics: p.manager, Events: p.manager, Streams: measured,
		Images: watchedImages{p.manager, &pulls, s.traces}, Node: reload, URLs: streams,
		Log: s.log.With("component", "cri"), Version: config.Version,
	})
	stop, err := s.serveCRI(ctx, service, broken)
	if err != nil {
		return err
	}
	s.notify("READY=1")
	s.log.Info("gantry serves", "listen", s.opts.Listen, "streaming", streams.Addr().String(), "metrics", s.opts.Metrics.Listen)
	err = s.wait(ctx, reload, broken)
	s.notify("STOPPING=1")
	p.manager.EndEvents() // these calls would never end by themselves
	s.log.Info("gantry is asked to end: no new calls; containers go on")
	stop()
	return err
}

// wait returns when ctx ends, which is no error, or when a server breaks.
func (s *server) wait(ctx context.Context, reload *reloader, broken <-chan error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-broken:
			return err
		case <-s.hangups:
			reload.reload(ctx)
		}
	}
}

// serveCRI returns what ends the server: no new calls, and a bounded time for those under way.
func (s *server) serveCRI(ctx context.Context, service *cri.Service, broken chan<- error) (stop func(), err error) {
	rpcs, err := observe.NewRPCs(s.log, s.registry)
	if err != nil {
		return nil, err
	}
	in := cri.Interceptors{
		Unary:  []grpc.UnaryServerInterceptor{rpcs.Unary},
		Stream: []grpc.StreamServerInterceptor{rpcs.Stream},
	}
	if s.traces != nil {
		in.Unary = append([]grpc.UnaryServerInterceptor{s.traces.Unary}, in.Unary...)
		in.Stream = append([]grpc.StreamServerInterceptor{s.traces.Stream}, in.Stream...)
	}
	g := cri.NewServer(service, in)
	ln, err := listenUnix(ctx, s.opts.SocketPath(), 0o660)
	if err != nil {
		return nil, err
	}
	go func() { broken <- g.Serve(ln) }()
	return func() { s.endCalls(g) }, nil
}

// ender is a gRPC server, which Stop interrupts in its GracefulStop.
type ender interface {
	GracefulStop()
	Stop()
}

// endCalls lets no new call begin and those under way end. After a while they are cancelled, and after another one that
// hangs all the same is left behind: the other parts have to be closed.
func (s *server) endCalls(g ender) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		g.GracefulStop()
	}()
	t := time.NewTimer(callsTimeout)
	defer t.Stop()
	select {
	case <-ended:
		return
	case <-t.C:
	}
	g.Stop()
	t.Reset(closeTimeout)
	select {
	case <-ended:
	case <-t.C:
		s.log.Warn("a call hangs, the server ends without it")
	}
}

func (s *server) serveAdmin(ctx context.Context, h http.Handler, broken chan<- error) error {
	ln, err := listenUnix(ctx, filepath.Join(s.opts.State, admin.SocketName), 0o600)
	if err != nil {
		return err
	}
	s.serveHTTP("admin socket", h, ln, broken)
	return nil
}

func (s *server) serveMetrics(ctx context.Context, m *lifecycle.Manager, broken chan<- error) error {
	if s.opts.Metrics.Listen == "" {
		return nil
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", s.opts.Metrics.Listen)
	if err != nil {
		return fmt.Errorf("listen for metrics: %w", err)
	}
	s.serveHTTP("metrics", observe.Handler(s.gatherer, func(ctx context.Context) error { return healthy(ctx, m) }), ln, broken)
	return nil
}

func (s *server) serveHTTP(what string, h http.Handler, ln net.Listener, broken chan<- error) {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout}
	s.onClose(what, func(context.Context) error { return srv.Close() })
	go func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			broken <- fmt.Errorf("serve %s: %w", what, err)
		}
	}()
}

// healthy is what /healthz says: the runtime's readiness. A node without network is still healthy.
func healthy(ctx context.Context, m *lifecycle.Manager) error {
	st, err := m.Status(ctx)
	if err != nil {
		return err
	}
	return st.Runtime
}

// watchedImages shows pulls on the admin socket.
type watchedImages struct {
	cri.Images
	pulls  *admin.Pulls
	traces *observe.Traces // nil: nobody wants them
}

func (w watchedImages) PullImage(ctx context.Context, podUID string, p *pod.Pull) (string, error) {
	if w.traces != nil {
		traced := *p
		progress, end := w.traces.Layers(ctx, p.Progress)
		defer end()
		traced.Progress = progress
		p = &traced
	}
	return w.pulls.Pull(ctx, w.Images, podUID, p)
}

func listenUnix(ctx context.Context, path string, mode os.FileMode) (net.Listener, error) {
	if err := removeStaleSocket(ctx, path); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	// To connect takes write permission, which only root has before this.
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), ln.Close())
	}
	return ln, nil
}

// answers says whether somebody listens at a socket, be it with more clients waiting than it has room for.
func answers(ctx context.Context, path string) (bool, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = conn.Close()
		return true, nil
	case errors.Is(err, unix.EAGAIN):
		return true, nil
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return false, nil
	}
	return false, err
}

// notifyEnv is where systemd says where it wants to be told (sd_notify(3)).
const notifyEnv = "NOTIFY_SOCKET"

// takeNotifySocket takes systemd's socket out of the environment: the keeper and the OCI runtimes
// would inherit it, and a runtime that finds it waits for the container to say that it is ready.
func takeNotifySocket() (path string, err error) {
	path = os.Getenv(notifyEnv)
	if err := os.Unsetenv(notifyEnv); err != nil {
		return "", fmt.Errorf("environment: %w", err)
	}
	return path, nil
}

// notify tells systemd how the server is; without systemd it does nothing.
func (s *server) notify(state string) {
	if s.notifySocket == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.notifySocket, Net: "unixgram"})
	if err != nil {
		return
	}
	_, _ = conn.Write([]byte(state))
	_ = conn.Close()
}
