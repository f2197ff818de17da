package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// defaultPatience is how long the daemon may be silent before it counts as hung. It is less than a check
// for Status may take (lifecycle.Times.Status), which therefore says it. The kubelet calls a runtime
// unhealthy after 30 seconds.
const defaultPatience = 4 * time.Second

// daemon is the connection to dockerd. A call may take as long as the work takes (a pull, the stop of
// a container); what may not happen is that it waits for a daemon that has stopped answering. So a
// call that takes longer than patience has the daemon pinged, once for all calls that wait, and when
// the ping gets no answer they all end with errdefs.ErrUnavailable. While the daemon is silent, new
// calls wait for no more than that ping: nothing piles up.
type daemon struct {
	api      *client.Client
	endpoint string
	patience time.Duration

	mu     sync.Mutex
	silent time.Time     // since when no ping is answered, zero when it does; guarded by mu
	ping   *ping         // the one under way, or nil; guarded by mu
	awake  chan struct{} // closed when a silence ends, then replaced; guarded by mu
}

type ping struct {
	done chan struct{} // closed when err is set
	err  error
}

func connect(o Options) (*daemon, error) {
	api, err := Dial(o)
	if err != nil {
		return nil, err
	}
	d := &daemon{api: api, endpoint: o.Endpoint, patience: o.Patience, awake: make(chan struct{})}
	if d.patience <= 0 {
		d.patience = defaultPatience
	}
	return d, nil
}

// check pings the daemon now, joining a ping that is under way.
func (d *daemon) check(ctx context.Context) error {
	p := d.pinging(ctx)
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("docker at %s: %w", d.endpoint, context.Cause(ctx))
	}
}

// pinging returns the ping under way, or begins one. It has a context of its own: callers share it.
func (d *daemon) pinging(ctx context.Context) *ping {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ping != nil {
		return d.ping
	}
	p := &ping{done: make(chan struct{})}
	d.ping = p
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.patience)
	go func() {
		defer cancel()
		began := time.Now()
		_, err := d.api.Ping(own, client.PingOptions{NegotiateAPIVersion: true})
		d.mu.Lock()
		defer d.mu.Unlock()
		defer close(p.done)
		d.ping = nil
		if err == nil || own.Err() == nil { // an answer is one also where it is heard late
			if !d.silent.IsZero() {
				d.silent = time.Time{}
				close(d.awake)
				d.awake = make(chan struct{})
			}
			p.err = d.cannotSay(err)
			return
		}
		if d.silent.IsZero() {
			d.silent = began
		}
		p.err = fmt.Errorf("docker at %s hangs, it has not answered for %v: %w",
			d.endpoint, time.Since(d.silent).Round(time.Second), errdefs.ErrUnavailable)
	}()
	return p
}

// woken is closed when a silence of the daemon ends that is under way, or begins later.
func (d *daemon) woken() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.awake
}

// hangs says whether the last ping got no answer.
func (d *daemon) hangs() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.silent.IsZero()
}

// call does one thing with the API under a watch for a hanging daemon.
func call[T any](ctx context.Context, d *daemon, do func(context.Context) (T, error)) (T, error) {
	var zero T
	if d.hangs() {
		if err := d.check(ctx); err != nil {
			return zero, err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := time.AfterFunc(d.patience, func() { d.watch(ctx, cancel) })
	defer watched.Stop()
	v, err := do(ctx)
	if cause := context.Cause(ctx); err != nil && errdefs.IsUnavailable(cause) {
		return zero, cause
	}
	if errdefs.IsInvalidArgument(err) {
		// So answers, too, who wants to be spoken to with TLS.
		if strange := d.check(ctx); errdefs.IsUnavailable(strange) {
			return zero, strange
		}
	}
	return v, d.classify(err)
}

// watch ends a call that takes long when the daemon does not answer a ping either.
func (d *daemon) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	for ctx.Err() == nil {
		if err := d.check(ctx); errdefs.IsUnavailable(err) {
			cancel(err)
			return
		}
		t := time.NewTimer(d.patience)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// classify makes what the client says of a daemon that is not there errdefs.ErrUnavailable.
func (d *daemon) classify(err error) error {
	if err == nil || errdefs.IsUnavailable(err) {
		return err
	}
	if client.IsErrConnectionFailed(err) || isCut(err) {
		return fmt.Errorf("docker at %s: %w: %s", d.endpoint, errdefs.ErrUnavailable, oneLine(err))
	}
	return err
}

// cannotSay makes any error of a request that asks for nothing but an answer errdefs.ErrUnavailable: what
// listens there is no Docker, or wants to be spoken to in another way.
func (d *daemon) cannotSay(err error) error {
	if err = d.classify(err); err == nil || errdefs.IsUnavailable(err) || errdefs.IsCanceled(err) || errdefs.IsDeadlineExceeded(err) {
		return err
	}
	return fmt.Errorf("docker at %s: %w: %s", d.endpoint, errdefs.ErrUnavailable, oneLine(err))
}

// isCut says whether the connection broke while the daemon was answering: it ends, or was killed.
func isCut(err error) bool {
	for _, cut := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNREFUSED} {
		if errors.Is(err, cut) {
			return true
		}
	}
	return false
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
