package keeper

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/keeper/wire"
)

// connection carries requests of several goroutines at once, told apart by ids.
type connection struct {
	wire *wire.Conn

	mu      sync.Mutex
	last    uint64                      // guarded by mu
	dead    bool                        // guarded by mu; a send failed
	pending map[uint64]chan *wire.Frame // guarded by mu; nil when the connection is broken
}

// errBroken says that the worker ended before it answered.
var errBroken = errors.New("connection to the keeper broke")

func newConnection(w *wire.Conn) *connection {
	c := &connection{wire: w, pending: map[uint64]chan *wire.Frame{}}
	go c.receive()
	return c
}

func (c *connection) receive() {
	for {
		f, fds, err := c.wire.Receive()
		if err != nil {
			break
		}
		wire.CloseAll(fds)
		c.mu.Lock()
		if reply := c.pending[f.ID]; reply != nil {
			delete(c.pending, f.ID)
			reply <- f
		}
		c.mu.Unlock()
	}
	_ = c.wire.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, reply := range c.pending {
		close(reply)
	}
	c.pending = nil
}

func (c *connection) broken() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead || c.pending == nil
}

// roundTrip sends one request and waits for its answer; errBroken if there will be none.
func (c *connection) roundTrip(ctx context.Context, op string, body any) (*wire.Frame, error) {
	f := &wire.Frame{Op: op}
	if err := f.SetBody(body); err != nil {
		return nil, err
	}
	reply := make(chan *wire.Frame, 1)
	c.mu.Lock()
	if c.pending == nil {
		c.mu.Unlock()
		return nil, errBroken
	}
	c.last++
	f.ID = c.last
	c.pending[f.ID] = reply
	c.mu.Unlock()
	if err := c.wire.Send(f); err != nil {
		if errors.Is(err, wire.ErrFrame) {
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		c.mu.Lock()
		c.dead = true
		c.mu.Unlock()
		return nil, errBroken
	}
	select {
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.pending, f.ID)
		c.mu.Unlock()
		return nil, context.Cause(ctx)
	case f, ok := <-reply:
		if !ok {
			return nil, errBroken
		}
		return f, nil
	}
}

// call asks the keeper, again and again if its worker is replaced meanwhile, and decodes the answer.
func (c *Client) call(ctx context.Context, op string, body, reply any) (*wire.Frame, error) {
	for range repeats {
		conn, err := c.get(ctx)
		if err != nil {
			return nil, err
		}
		f, err := conn.roundTrip(ctx, op, body)
		switch {
		case errors.Is(err, errBroken):
			continue
		case err != nil:
			return nil, err
		case f.Err() != nil:
			return nil, classed(f.Err())
		case reply != nil:
			return f, f.Into(reply)
		}
		return f, nil
	}
	return nil, fmt.Errorf("%s: the keeper's worker dies again and again: %w", op, errdefs.ErrUnavailable)
}

// get returns the shared connection, made anew when it broke.
func (c *Client) get(ctx context.Context) (*connection, error) {
	c.mu.Lock()
	conn, closed := c.conn, c.closed
	c.mu.Unlock()
	if closed {
		return nil, fmt.Errorf("the keeper's client is closed: %w", errdefs.ErrUnavailable)
	}
	if conn != nil && !conn.broken() {
		return conn, nil
	}
	w, err := c.dialIfBroken(ctx)
	if err != nil || w != nil {
		return w, err
	}
	return c.get(ctx)
}

// dialIfBroken connects, unless somebody else just did; then it returns nil.
func (c *Client) dialIfBroken(ctx context.Context) (*connection, error) {
	select {
	case c.dialing <- struct{}{}:
		defer func() { <-c.dialing }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	c.mu.Lock()
	done := c.conn != nil && !c.conn.broken()
	c.mu.Unlock()
	if done {
		return nil, nil
	}
	w, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	conn := newConnection(w)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = w.Close()
	}
	c.conn = conn
	c.made++
	return conn, nil
}

// dial connects to the keeper's socket, and starts a keeper when nobody listens there.
func (c *Client) dial(ctx context.Context) (*wire.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("no keeper answers: %w", errdefs.ErrUnavailable))
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		w, err := wire.Dial(c.socket())
		if err == nil {
			return w, nil
		}
		if err := c.start(ctx); err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}
