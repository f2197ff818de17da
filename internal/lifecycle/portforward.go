package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/netns"
)

// PortForward connects a client to a port on the pod's loopback, IPv4 first, and copies both ways
// until both sides have ended or ctx does. It closes stream.
func (m *Manager) PortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error {
	defer func() { _ = stream.Close() }()
	p, err := m.index.pod(podID)
	if err != nil {
		return err
	}
	if err = mustBeReady(p); err != nil {
		return err
	}
	if port < 1 || port > 65535 {
		return fmt.Errorf("port %d: %w", port, errdefs.ErrInvalidArgument)
	}
	conn, err := dial(ctx, p, port)
	if err != nil {
		return fmt.Errorf("connect to port %d of pod %s: %w", port, p.key.Short(), err)
	}
	return splice(ctx, stream, conn)
}

func dial(ctx context.Context, p *podEntry, port int32) (io.ReadWriteCloser, error) {
	if d, ok := p.engine.(engine.Dialer); ok {
		return d.Dial(ctx, p.key, port)
	}
	path := p.now.Load().NetNS
	if path == "" {
		return dialLoopback(ctx, port)
	}
	var conn net.Conn
	err := netns.Do(path, func() error {
		var err error
		conn, err = dialLoopback(ctx, port)
		return err
	})
	return conn, err
}

// dialLoopback makes its sockets on the calling goroutine: each address is dialled by itself, for
// net.Dialer races several on goroutines of its own, which are in another network namespace.
func dialLoopback(ctx context.Context, port int32) (net.Conn, error) {
	var (
		d    net.Dialer
		errs []error
	)
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%w: %w", errdefs.ErrUnavailable, errors.Join(errs...))
}

// splice copies both ways. The end of one direction is passed on, and the other goes on; a stream
// that cannot be half closed ends with the pod's side.
func splice(ctx context.Context, client, conn io.ReadWriteCloser) error {
	stop := context.AfterFunc(ctx, func() {
		_ = client.Close()
		_ = conn.Close()
	})
	defer stop()
	up := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, client)
		closeWrite(conn)
		up <- err
	}()
	_, down := io.Copy(client, conn)
	if !closeWrite(client) {
		_ = client.Close()
	}
	sent := <-up
	_ = conn.Close()
	if ctx.Err() != nil {
		return fmt.Errorf("forward a port: %w", context.Cause(ctx))
	}
	for _, err := range []error{down, sent} {
		if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
			return fmt.Errorf("forward a port: %w", err)
		}
	}
	return nil
}

// closeWrite tells the other side that no more comes, where that can be told.
func closeWrite(c io.Writer) bool {
	h, ok := c.(interface{ CloseWrite() error })
	return ok && h.CloseWrite() == nil
}
