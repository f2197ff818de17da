package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/keeper/wire"
)

// Options say which keeper to use.
type Options struct {
	StateDir   string // absolute; its socket and records, made if it is missing
	Binary     string // gantry-keeper, started when none runs
	CgroupPath string // of the keeper itself, below the cgroup mount, in every hierarchy; "" leaves it where it is
	Log        *slog.Logger
}

// Client speaks to the keeper of one state directory. Its methods may be called from several
// goroutines. When the keeper's worker is replaced, it connects again and repeats what was under
// way: all requests but Exec may be repeated.
//
// Errors carry the classes of containerd/errdefs; ErrUnavailable when no keeper answers.
type Client struct {
	opt Options

	dialing chan struct{} // holds one token while somebody connects

	mu     sync.Mutex
	conn   *connection // guarded by mu; nil or broken when there is none
	made   uint64      // connections so far; guarded by mu
	closed bool        // guarded by mu
}

// Connect connects to the running keeper of the state directory, else starts one, detached, and
// waits until it answers.
func Connect(ctx context.Context, opt Options) (*Client, error) {
	if !filepath.IsAbs(opt.StateDir) {
		return nil, fmt.Errorf("keeper state directory %q is not absolute: %w", opt.StateDir, errdefs.ErrInvalidArgument)
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{opt: opt, dialing: make(chan struct{}, 1)}
	if err := c.Ping(ctx); err != nil {
		return nil, fmt.Errorf("connect to the keeper: %w", err)
	}
	return c, nil
}

// Close ends the connection. Containers and the keeper go on.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.conn != nil {
		return c.conn.wire.Close()
	}
	return nil
}

// Ping returns an error when no keeper answers.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.call(ctx, wire.OpPing, nil, nil)
	return err
}

// Connections is how many shared connections were made so far. Each after the first follows a worker
// that was replaced.
func (c *Client) Connections() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.made
}

// Create makes a container up to where Start only has to let it go, and returns its main process's
// pid. If it exists, its pid is the answer. A create that fails leaves nothing behind.
func (c *Client) Create(ctx context.Context, req *Create) (pid int, err error) {
	var reply wire.Pid
	if _, err := c.call(ctx, wire.OpCreate, req, &reply); err != nil {
		return 0, err
	}
	return reply.Pid, nil
}

// Start lets a created container run; one that runs or has run is no error.
func (c *Client) Start(ctx context.Context, key string) error {
	_, err := c.call(ctx, wire.OpStart, wire.Target{Key: key}, nil)
	return err
}

// Signal sends a signal to a container's main process. One that has ended is no error.
func (c *Client) Signal(ctx context.Context, key string, sig syscall.Signal) error {
	_, err := c.call(ctx, wire.OpSignal, wire.Target{Key: key, Signal: int(sig)}, nil)
	return err
}

// SignalAll sends a signal to every process in a container's cgroup.
func (c *Client) SignalAll(ctx context.Context, key string, sig syscall.Signal) error {
	_, err := c.call(ctx, wire.OpSignal, wire.Target{Key: key, Signal: int(sig), All: true}, nil)
	return err
}

// Delete removes a container; what still runs is killed. An absent one is no error. The log stays.
func (c *Client) Delete(ctx context.Context, key string) error {
	_, err := c.call(ctx, wire.OpDelete, wire.Target{Key: key}, nil)
	return err
}

// ReopenLog goes on in the file that now has the log's path, after a rotation renamed the old one.
func (c *Client) ReopenLog(ctx context.Context, key string) error {
	_, err := c.call(ctx, wire.OpReopen, wire.Target{Key: key}, nil)
	return err
}

// OpenLog opens the log of a container that dockerd is to run with the log driver at l.Socket, and the
// option LogKeyOption naming its key. One that is open is no error.
func (c *Client) OpenLog(ctx context.Context, l *Log) error {
	_, err := c.call(ctx, wire.OpLog, l, nil)
	return err
}

// CloseLog forgets a log that OpenLog opened; its file stays. An absent one is no error.
func (c *Client) CloseLog(ctx context.Context, key string) error {
	_, err := c.call(ctx, wire.OpUnlog, wire.Target{Key: key}, nil)
	return err
}

// List returns every container of the keeper, with the exits of those that ended.
func (c *Client) List(ctx context.Context) ([]State, error) {
	var states []State
	_, err := c.call(ctx, wire.OpList, nil, &states)
	return states, err
}

// Watch delivers exits and survived OOM kills from now on. The channel closes when ctx ends or the
// connection is lost; what happened meanwhile is in List.
func (c *Client) Watch(ctx context.Context) (<-chan Event, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	if _, _, err := ask(ctx, conn, wire.OpWatch, nil, nil); err != nil {
		_ = conn.Close()
		if errors.Is(err, errBroken) {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
		}
		return nil, fmt.Errorf("watch the keeper: %w", err)
	}
	events := make(chan Event)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	go func() {
		defer close(events)
		defer func() { stop(); _ = conn.Close() }()
		for {
			f, fds, err := conn.Receive()
			if err != nil {
				return
			}
			wire.CloseAll(fds)
			var e Event
			if err := f.Into(&e); err != nil {
				c.opt.Log.Error("keeper event", "error", err)
				return
			}
			select {
			case events <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	return events, nil
}

// classed gives an error from the keeper its class.
func classed(err error) error {
	var e *wire.Error
	if !errors.As(err, &e) {
		return err
	}
	class := map[string]error{
		wire.CodeNotFound: errdefs.ErrNotFound, wire.CodeInvalid: errdefs.ErrInvalidArgument,
		wire.CodePrecondition: errdefs.ErrFailedPrecondition, wire.CodeUnavailable: errdefs.ErrUnavailable,
		wire.CodeDeadline: context.DeadlineExceeded, wire.CodeAborted: errdefs.ErrAborted,
		wire.CodeExhausted: errdefs.ErrResourceExhausted,
	}[e.Code]
	if class == nil {
		class = errdefs.ErrUnknown
	}
	return fmt.Errorf("%s: %w", e.Text, class)
}

// How often a request is repeated whose worker was replaced under it, and how long a keeper has to
// come up.
const (
	repeats    = 100
	startLimit = 20 * time.Second
)
