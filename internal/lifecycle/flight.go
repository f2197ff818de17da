package lifecycle

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// flights joins callers that want the same thing at the same time. An attempt runs with a context
// of its own: a caller whose context ends leaves, and the attempt goes on for the others. When
// nobody waits any more it may finish within linger, so that a client which gave up and asks again
// joins it or finds its result; then its context ends, and it undoes itself. Who asks again only now gets an attempt
// of its own behind that.
type flights[T any] struct {
	linger time.Duration
	work   sync.WaitGroup

	mu     sync.Mutex
	by     map[string]*flight[T] // guarded by mu
	closed bool                  // guarded by mu
}

type flight[T any] struct {
	done    chan struct{} // closed when val and err are set
	val     T
	err     error
	cancel  context.CancelCauseFunc
	waiters int         // guarded by flights.mu
	lonely  *time.Timer // set while waiters is 0; guarded by flights.mu
	doomed  bool        // lonely for too long, it undoes itself; guarded by flights.mu
}

func newFlights[T any](linger time.Duration) *flights[T] {
	return &flights[T]{linger: linger, by: make(map[string]*flight[T])}
}

// do joins the attempt at key, or begins it, and waits for its end or ctx's.
func (f *flights[T]) do(ctx context.Context, key string, attempt func(context.Context) (T, error)) (T, error) {
	var zero T
	if ctx.Err() != nil {
		return zero, fmt.Errorf("not begun: %w", context.Cause(ctx))
	}
	for {
		fl, doomed, err := f.join(ctx, key, attempt)
		if err != nil {
			return zero, err
		}
		val, err := f.await(ctx, fl)
		if err == nil || !doomed || ctx.Err() != nil {
			return val, err
		}
	}
}

// await waits for an attempt that was joined.
func (f *flights[T]) await(ctx context.Context, fl *flight[T]) (T, error) {
	defer f.leave(fl)
	select {
	case <-fl.done:
		return fl.val, fl.err
	case <-ctx.Done():
		var zero T
		return zero, fmt.Errorf("the work goes on: %w", context.Cause(ctx))
	}
}

// join says of an attempt under way whether it is doomed.
func (f *flights[T]) join(ctx context.Context, key string, attempt func(context.Context) (T, error)) (fl *flight[T], doomed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, false, fmt.Errorf("the server is stopping: %w", errdefs.ErrUnavailable)
	}
	if fl = f.by[key]; fl != nil {
		fl.waiters++
		if fl.lonely != nil {
			fl.lonely.Stop()
			fl.lonely = nil
		}
		return fl, fl.doomed, nil
	}
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	fl = &flight[T]{done: make(chan struct{}), cancel: cancel, waiters: 1}
	fl.err = fmt.Errorf("the attempt ended without a result: %w", errdefs.ErrInternal)
	f.by[key] = fl
	f.work.Go(func() {
		defer f.end(key, fl)
		val, err := attempt(own)
		fl.val, fl.err = val, err
	})
	return fl, false, nil
}

func (f *flights[T]) end(key string, fl *flight[T]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.by, key)
	if fl.lonely != nil {
		fl.lonely.Stop()
	}
	fl.cancel(nil)
	close(fl.done)
}

func (f *flights[T]) leave(fl *flight[T]) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl.waiters--
	select {
	case <-fl.done:
		return
	default:
	}
	if fl.waiters > 0 || fl.doomed {
		return
	}
	var t *time.Timer
	t = time.AfterFunc(f.linger, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if fl.lonely == t { // nobody has come in this very moment
			fl.doomed = true
			fl.cancel(fmt.Errorf("nobody waits for the work any more: %w", errdefs.ErrAborted))
		}
	})
	fl.lonely = t
}

// close ends every attempt and refuses further ones.
func (f *flights[T]) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, fl := range f.by {
		fl.cancel(fmt.Errorf("the server is stopping: %w", errdefs.ErrUnavailable))
	}
}

func (f *flights[T]) wait() { f.work.Wait() }
