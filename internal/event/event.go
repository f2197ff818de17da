// Package event hands what happens to pods and containers to whoever listens. Nothing waits for a
// listener: each has a buffer of its own, and one that falls behind is cut off with an error, so that
// it knows to list anew, instead of missing something.
package event

import (
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

// Kind is what happened.
type Kind string

// The kinds of event. A sandbox has them too.
const (
	Created Kind = "created"
	Started Kind = "started"
	Stopped Kind = "stopped"
	Deleted Kind = "deleted" // nothing of it is left
)

// Event is something that happened to a container, or to a sandbox. The snapshots are of the moment
// of At: whoever keeps the one with the latest At has the truth.
type Event struct {
	Kind       Kind
	ID         string // of the container, or of the sandbox
	At         time.Time
	Sandbox    *pod.Sandbox
	Containers []*pod.Container // of the sandbox, without one that is deleted
}

// Options bound a Log. Zero is the default.
type Options struct {
	Keep   int // events kept for a replay: 1024
	Buffer int // events that wait for one listener: 1024
}

// Log is the order of all events. It is safe for concurrent use; its lock is held while an event's
// snapshots are taken, never while anybody is waited for.
type Log struct {
	opts Options

	mu        sync.Mutex
	last      time.Time                  // guarded by mu; no event is older or as old
	complete  time.Time                  // guarded by mu; every event after it is kept
	kept      []Event                    // guarded by mu; a ring whose oldest is at next once it is full
	next      int                        // guarded by mu
	listeners map[*Subscription]struct{} // guarded by mu
	closed    bool                       // guarded by mu
}

// New returns a Log that is complete from now on.
func New(o Options) *Log {
	if o.Keep <= 0 {
		o.Keep = 1024
	}
	if o.Buffer <= 0 {
		o.Buffer = 1024
	}
	now := time.Now().Round(0)
	return &Log{opts: o, last: now, complete: now, listeners: make(map[*Subscription]struct{})}
}

// Publish adds an event. Snapshot is called once, in the order of the events, and fills in what is
// true now; the Log sets At, later than that of every event before.
func (l *Log) Publish(snapshot func() Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ev := snapshot()
	ev.At = l.stamp()
	l.keep(ev)
	for s := range l.listeners {
		select {
		case s.events <- ev:
		default:
			l.end(s, fmt.Errorf("more than %d events wait for this listener, the next was at %s: list anew: %w",
				cap(s.events), ev.At.Format(time.RFC3339Nano), errdefs.ErrResourceExhausted))
		}
	}
}

// Close cuts off every listener, and those that come later. Publish goes on to work.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for s := range l.listeners {
		l.end(s, errClosed())
	}
}

func errClosed() error {
	return fmt.Errorf("no more events: the server ends: %w", errdefs.ErrUnavailable)
}

// end cuts a listener off. mu is held.
func (l *Log) end(s *Subscription, why error) {
	s.err = why
	delete(l.listeners, s)
	close(s.events)
}

// stamp is now, or a nanosecond after the last event where the clock says less. mu is held.
func (l *Log) stamp() time.Time {
	now := time.Now().Round(0) // the wall's alone: that is what listeners see
	if !now.After(l.last) {
		now = l.last.Add(1)
	}
	l.last = now
	return now
}

func (l *Log) keep(ev Event) {
	if len(l.kept) < l.opts.Keep {
		l.kept = append(l.kept, ev)
		return
	}
	l.complete = l.kept[l.next].At
	l.kept[l.next] = ev
	l.next = (l.next + 1) % len(l.kept)
}

// Subscription is one listener's events. It is closed when it is not read any more.
type Subscription struct {
	log    *Log
	events chan Event
	err    error // why it was cut off; written before events is closed
	// Replay are kept events from before the subscription, the oldest first; Complete is since when
	// none is missing among them.
	Replay   []Event
	Complete time.Time
}

// Subscribe begins to listen. Since, unless it is zero, asks for the kept events after it as well:
// where Complete is later than since, older ones are not kept any more.
func (l *Log) Subscribe(since time.Time) *Subscription {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &Subscription{log: l, events: make(chan Event, l.opts.Buffer), Complete: l.complete}
	if !since.IsZero() {
		for i := range l.kept {
			if ev := l.kept[(l.next+i)%len(l.kept)]; ev.At.After(since) {
				s.Replay = append(s.Replay, ev)
			}
		}
	}
	l.listeners[s] = struct{}{}
	if l.closed {
		l.end(s, errClosed())
	}
	return s
}

// Events delivers the events after the subscription, in their order. It is closed when the listener
// was cut off.
func (s *Subscription) Events() <-chan Event { return s.events }

// Err says why Events was closed: errdefs.ErrResourceExhausted for a listener that fell behind,
// errdefs.ErrUnavailable when the Log was closed. It is for after that.
func (s *Subscription) Err() error { return s.err }

// Close ends the listening.
func (s *Subscription) Close() {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	delete(s.log.listeners, s)
}
