package docker

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// Attach connects to the container's own streams, also before it runs.
func (e *Engine) Attach(ctx context.Context, key pod.Key, streams engine.IO) error {
	is, err := e.find(ctx, key)
	if err != nil {
		return err
	}
	conn, err := call(ctx, e.daemon, func(ctx context.Context) (client.ContainerAttachResult, error) {
		return e.daemon.api.ContainerAttach(ctx, is.id, client.ContainerAttachOptions{
			Stream: true, Stdin: streams.Stdin != nil, Stdout: streams.Stdout != nil, Stderr: streams.Stderr != nil && !is.tty,
		})
	})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer conn.Close()
	s := session{conn: &conn.HijackedResponse, tty: is.tty, io: streams, resize: func(ctx context.Context, size engine.Size) error {
		return e.resize(ctx, is.id, size)
	}}
	if err = s.run(ctx); err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return e.daemon.classify(err)
}

func (e *Engine) resize(ctx context.Context, id string, size engine.Size) error {
	_, err := call(ctx, e.daemon, func(ctx context.Context) (client.ContainerResizeResult, error) {
		return e.daemon.api.ContainerResize(ctx, id, client.ContainerResizeOptions{Height: uint(size.Height), Width: uint(size.Width)})
	})
	return err
}

// session moves bytes between a client and a connection that Docker gave away.
type session struct {
	conn   *client.HijackedResponse
	tty    bool
	io     engine.IO
	resize func(context.Context, engine.Size) error
}

// run returns when the output has ended, or ctx has, whose error it then is.
func (s *session) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cut := context.AfterFunc(ctx, s.conn.Close)
	defer cut()
	if s.io.Stdin != nil {
		go s.input()
	}
	if s.io.Resize != nil {
		go s.sizes(ctx)
	}
	err := s.output()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// input passes the client's on until its end, which is passed on too, but to a terminal: there dockerd ends the
// output with the input.
func (s *session) input() {
	_, err := io.Copy(s.conn.Conn, s.io.Stdin)
	if err == nil && !s.tty {
		_ = s.conn.CloseWrite()
	}
}

func (s *session) sizes(ctx context.Context) {
	for {
		select {
		case size, ok := <-s.io.Resize:
			if !ok || s.resize(ctx, size) != nil && ctx.Err() != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// output delivers until the end. The client that leaves ends it, but not what writes: it is read on.
func (s *session) output() error {
	out, errOut := orNothing(s.io.Stdout), orNothing(s.io.Stderr)
	var err error
	if s.tty {
		_, err = io.Copy(out, s.conn.Reader)
	} else {
		_, err = stdcopy.StdCopy(out, errOut, s.conn.Reader)
	}
	if errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

func orNothing(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}
