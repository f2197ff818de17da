package streaming

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"

	"gantry/internal/engine"
)

// session is one client's request, between the protocol and the backend. Its context is the
// connection's: the one that the protocol offers knows nothing of a client that went away.
type session struct {
	server *Server
	ctx    context.Context //nolint:containedctx // a session is one call

	// The streams that were asked for: the protocol may offer others.
	stdin, stdout, stderr bool
}

var (
	_ remotecommand.Executor    = (*session)(nil)
	_ remotecommand.Attacher    = (*session)(nil)
	_ portforward.PortForwarder = (*session)(nil)
)

// exitError tells the protocol the exit code of a process that ended by itself (k8s.io/utils/exec
// ExitError).
type exitError int

func (e exitError) Error() string   { return "exit status " + strconv.Itoa(int(e)) }
func (e exitError) String() string  { return e.Error() }
func (e exitError) Exited() bool    { return true }
func (e exitError) ExitStatus() int { return int(e) }

// ExecInContainer runs cmd with the client's streams. The context that the library gives is nobody's;
// the connection's is the session's own.
//
//nolint:revive,contextcheck // the signature is the library's
func (s *session) ExecInContainer(_ context.Context, _, _, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	code, err := s.server.backend.Exec(ctx, id, &engine.Exec{Args: cmd, TTY: tty, IO: s.io(ctx, client{in, out, errOut, tty, resize})})
	closeOutputs(out, errOut)
	if err != nil {
		return err
	}
	if code != 0 {
		return exitError(code)
	}
	return nil
}

// AttachContainer connects the client to the container's own streams.
//
//nolint:revive,contextcheck // the signature is the library's
func (s *session) AttachContainer(_ context.Context, _, _, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	err := s.server.backend.Attach(ctx, id, s.io(ctx, client{in, out, errOut, tty, resize}))
	closeOutputs(out, errOut)
	return err
}

// PortForward connects one stream of the client to a port of the sandbox.
//
//nolint:contextcheck // the context of the signature is nobody's
func (s *session) PortForward(_ context.Context, podID, _ string, port int32, stream io.ReadWriteCloser) error {
	if !s.server.calls.begin() {
		return net.ErrClosed
	}
	defer s.server.calls.done()
	if hs, ok := stream.(httpstream.Stream); ok {
		stream = forwarded{hs}
	}
	if err := s.server.backend.PortForward(s.ctx, podID, port, stream); err != nil {
		return fmt.Errorf("port %d: %w", port, err)
	}
	return nil
}

// forwarded gives a SPDY stream the ways to end of a TCP connection. SPDY's own Close ends one
// direction and leaves the other's bytes to nobody, which in time blocks the whole connection.
type forwarded struct{ httpstream.Stream }

// CloseWrite tells the client that no more comes.
func (f forwarded) CloseWrite() error { return f.Stream.Close() }

// Close ends both directions; a Read that waits returns.
func (f forwarded) Close() error {
	_ = f.Stream.Close() // fails when CloseWrite came before
	return f.Reset()
}

// client is what the library made of a client's connection.
type client struct {
	in          io.Reader
	out, errOut io.Writer
	tty         bool
	resize      <-chan remotecommand.TerminalSize
}

// io keeps those streams that the request asked for.
func (s *session) io(ctx context.Context, c client) engine.IO {
	var e engine.IO
	if s.stdin {
		e.Stdin = c.in
	}
	if s.stdout {
		e.Stdout = c.out
	}
	if s.stderr && !c.tty {
		e.Stderr = c.errOut
	}
	if c.tty && c.resize != nil {
		e.Resize = sizes(ctx, c.resize)
	}
	return e
}

// sizes hands terminal sizes on until the client sends no more or ctx ends. A size that nobody took is
// replaced by the next.
func sizes(ctx context.Context, in <-chan remotecommand.TerminalSize) <-chan engine.Size {
	out := make(chan engine.Size)
	go func() {
		defer close(out)
		var (
			last engine.Size
			to   chan<- engine.Size // nil while there is nothing to hand on
		)
		for {
			select {
			case <-ctx.Done():
				return
			case sz, ok := <-in:
				if ok {
					last, to = engine.Size{Width: sz.Width, Height: sz.Height}, out
					continue
				}
				in = nil
			case to <- last:
				to = nil
			}
			if in == nil && to == nil {
				return
			}
		}
	}()
	return out
}

// closeOutputs tells the client that nothing more comes, before it is told how the process ended.
func closeOutputs(list ...io.WriteCloser) {
	for _, w := range list {
		if w != nil {
			_ = w.Close()
		}
	}
}
