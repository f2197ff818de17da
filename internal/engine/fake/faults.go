package fake

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// ErrFault is what a call with a fault returns unless the test said otherwise.
var ErrFault = errors.New("fault")

// Option adds a fault to a new Engine or Images.
type Option func(*faults)

// FailOn makes every call of a method fail before it does anything.
func FailOn(method string) Option {
	return func(f *faults) { f.set(method, fault{kind: failBefore, err: ErrFault}) }
}

// LoseAnswerOf makes every call of a method do its work and fail all the same, as when the
// connection breaks before the answer.
func LoseAnswerOf(method string) Option {
	return func(f *faults) { f.set(method, fault{kind: failAfter, err: ErrFault}) }
}

// HangOn makes every call of a method wait until its context ends, without doing anything.
func HangOn(method string) Option {
	return func(f *faults) { f.set(method, fault{kind: hang}) }
}

// Faults changes faults while an Engine or Images is in use.
type Faults struct{ f *faults }

// Add adds faults. A method has one at a time: the last.
func (f Faults) Add(opts ...Option) {
	for _, o := range opts {
		o(f.f)
	}
}

// Fail makes every call of a method fail with err.
func (f Faults) Fail(method string, err error) {
	f.f.set(method, fault{kind: failBefore, err: err})
}

// Gate makes every call of a method wait until open is closed, then do its work. Arrived, if not
// nil, gets one value for each call that waits.
func (f Faults) Gate(method string, arrived chan<- struct{}, open <-chan struct{}) {
	f.f.set(method, fault{kind: gate, arrived: arrived, open: open})
}

// Lift removes a method's fault. Calls that hang go on hanging.
func (f Faults) Lift(method string) {
	f.f.mu.Lock()
	defer f.f.mu.Unlock()
	delete(f.f.by, method)
}

type kind int

const (
	failBefore kind = iota
	failAfter
	hang
	gate
)

type fault struct {
	kind    kind
	err     error
	arrived chan<- struct{}
	open    <-chan struct{}
}

// faults holds one fault a method. The zero value has none.
type faults struct {
	mu sync.Mutex
	by map[string]fault // guarded by mu
}

func (f *faults) set(method string, ft fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.by == nil {
		f.by = make(map[string]fault)
	}
	f.by[method] = ft
}

func (f *faults) get(method string) (fault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ft, ok := f.by[method]
	return ft, ok
}

// before is what happens instead of the work; a context that has ended stops every call.
func (f *faults) before(ctx context.Context, method string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	ft, ok := f.get(method)
	if !ok {
		return nil
	}
	switch ft.kind {
	case failBefore:
		return fmt.Errorf("%s: %w", method, ft.err)
	case hang:
		<-ctx.Done()
		return fmt.Errorf("%s: %w", method, ctx.Err())
	case gate:
		return ft.pass(ctx, method)
	}
	return nil
}

func (ft *fault) pass(ctx context.Context, method string) error {
	if ft.arrived != nil {
		ft.arrived <- struct{}{}
	}
	select {
	case <-ft.open:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", method, ctx.Err())
	}
}

func (f *faults) after(_ context.Context, method string) error {
	if ft, ok := f.get(method); ok && ft.kind == failAfter {
		return fmt.Errorf("%s: %w", method, ft.err)
	}
	return nil
}
