package image

import (
	"context"
	"sync"

	"gantry/internal/pod"
)

// flights lets callers who want the same thing at the same time share one attempt. The attempt goes
// on while at least one of them waits.
type flights[K comparable, V any] struct {
	mu     sync.Mutex
	flying map[K]*flight[V] // guarded by mu
	closed error            // guarded by mu
	all    sync.WaitGroup
}

type flight[V any] struct {
	cancel  context.CancelCauseFunc
	waiters int // guarded by flights.mu
	done    chan struct{}
	value   V     // set before done is closed
	err     error // set before done is closed

	mu        sync.Mutex
	listeners []*listener // guarded by mu
}

// listener is a caller's progress function until the caller leaves.
type listener struct {
	mu   sync.Mutex
	call func(pod.LayerProgress) // guarded by mu; nil when the caller left
}

func (l *listener) hear(p pod.LayerProgress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.call != nil {
		l.call(p)
	}
}

func (l *listener) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.call = nil
}

// notify tells every caller of the flight how far a layer is.
func (f *flight[V]) notify(p pod.LayerProgress) {
	f.mu.Lock()
	listeners := f.listeners
	f.mu.Unlock()
	for _, l := range listeners {
		l.hear(p)
	}
}

// do runs try, or joins the attempt for key that is under way. When ctx ends do returns its error; the
// last who waited for an attempt cancels it and returns when it has ended, so that nothing is left.
// Listen may be nil; it is not called after do returned.
func (f *flights[K, V]) do(ctx context.Context, key K, listen func(pod.LayerProgress),
	try func(context.Context, func(pod.LayerProgress)) (V, error),
) (value V, joined bool, err error) {
	l := &listener{call: listen}
	defer l.leave()
	fl, joined, err := f.enter(ctx, key, l, try)
	if err != nil {
		return value, false, err
	}
	select {
	case <-fl.done:
		return fl.value, joined, fl.err
	case <-ctx.Done():
		if f.leave(key, fl, context.Cause(ctx)) {
			<-fl.done
		}
		return value, joined, context.Cause(ctx)
	}
}

func (f *flights[K, V]) enter(ctx context.Context, key K, l *listener,
	try func(context.Context, func(pod.LayerProgress)) (V, error),
) (fl *flight[V], joined bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed != nil {
		return nil, false, f.closed
	}
	fl = f.flying[key]
	if joined = fl != nil; !joined {
		run, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		fl = &flight[V]{cancel: cancel, done: make(chan struct{})}
		if f.flying == nil {
			f.flying = make(map[K]*flight[V])
		}
		f.flying[key] = fl
		f.all.Add(1)
		go f.fly(run, key, fl, try)
	}
	fl.waiters++
	fl.mu.Lock()
	fl.listeners = append(fl.listeners[:len(fl.listeners):len(fl.listeners)], l)
	fl.mu.Unlock()
	return fl, joined, nil
}

func (f *flights[K, V]) fly(ctx context.Context, key K, fl *flight[V],
	try func(context.Context, func(pod.LayerProgress)) (V, error),
) {
	defer f.all.Done()
	fl.value, fl.err = try(ctx, fl.notify)
	fl.cancel(nil)
	f.mu.Lock()
	f.forget(key, fl)
	f.mu.Unlock()
	close(fl.done)
}

// leave cancels fl if the last waiter leaves.
func (f *flights[K, V]) leave(key K, fl *flight[V], cause error) (last bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.waiters--; fl.waiters > 0 {
		return false
	}
	f.forget(key, fl) // who comes now starts afresh
	fl.cancel(cause)
	return true
}

// forget drops fl unless a successor has its place. The caller holds mu.
func (f *flights[K, V]) forget(key K, fl *flight[V]) {
	if f.flying[key] == fl {
		delete(f.flying, key)
	}
}

// close cancels every attempt, waits for their ends and refuses new ones with err.
func (f *flights[K, V]) close(err error) {
	f.mu.Lock()
	f.closed = err
	for _, fl := range f.flying {
		fl.cancel(err)
	}
	f.mu.Unlock()
	f.all.Wait()
}
