// Package keylock serialises work per key, so that one slow pod never delays another.
package keylock

import (
	"context"
	"sync"
)

// Locks hands out one lock per key. The zero value is ready to use.
type Locks[K comparable] struct {
	mu   sync.Mutex
	held map[K]*entry // guarded by mu
}

type entry struct {
	sem     chan struct{} // holds one token while locked
	waiters int           // guarded by Locks.mu; includes the holder
}

// Lock waits until key is free or ctx ends, and returns the function that frees it again. That
// function must be called once; further calls do nothing. The error is ctx's.
func (l *Locks[K]) Lock(ctx context.Context, key K) (unlock func(), err error) {
	e := l.enter(key)
	select {
	case e.sem <- struct{}{}:
		return sync.OnceFunc(func() { <-e.sem; l.leave(key, e) }), nil
	case <-ctx.Done():
		l.leave(key, e)
		return nil, context.Cause(ctx)
	}
}

func (l *Locks[K]) enter(key K) *entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = make(map[K]*entry)
	}
	e := l.held[key]
	if e == nil {
		e = &entry{sem: make(chan struct{}, 1)}
		l.held[key] = e
	}
	e.waiters++
	return e
}

func (l *Locks[K]) leave(key K, e *entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.waiters--; e.waiters == 0 {
		delete(l.held, key)
	}
}

// Len is the number of keys that are held or waited for.
func (l *Locks[K]) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.held)
}
