package image

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"gantry/internal/pod"
)

// outcome is what one caller of a flight got.
type outcome struct {
	value  int
	joined bool
	err    error
}

// board calls do in a goroutine and returns when it waits.
func board(ctx context.Context, f *flights[string, int], try func(context.Context) (int, error)) <-chan outcome {
	out := make(chan outcome, 1)
	go func() {
		v, joined, err := f.do(ctx, "key", nil, func(ctx context.Context, _ func(pod.LayerProgress)) (int, error) { return try(ctx) })
		out <- outcome{v, joined, err}
	}()
	synctest.Wait()
	return out
}

func TestFlightIsSharedAndOutlivesWhoBeganIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights[string, int]
		var runs atomic.Int32
		gate := make(chan struct{})
		try := func(ctx context.Context) (int, error) {
			runs.Add(1)
			select {
			case <-gate:
				return 7, nil
			case <-ctx.Done():
				return 0, context.Cause(ctx)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		first := board(ctx, &f, try)
		second := board(t.Context(), &f, try)
		cancel()
		if o := <-first; !errors.Is(o.err, context.Canceled) || o.joined {
			t.Errorf("the first got %+v", o)
		}
		close(gate)
		if o := <-second; o.err != nil || o.value != 7 || !o.joined {
			t.Errorf("the second got %+v", o)
		}
		if o := <-board(t.Context(), &f, try); o.joined || runs.Load() != 2 {
			t.Errorf("who comes later got %+v after %d runs", o, runs.Load())
		}
	})
}

func TestFlightEndsWithItsLastPassenger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights[string, int]
		cleaned := make(chan struct{})
		undone := false
		ctx, cancel := context.WithCancel(t.Context())
		out := board(ctx, &f, func(ctx context.Context) (int, error) {
			<-ctx.Done()
			<-cleaned
			undone = true
			return 0, context.Cause(ctx)
		})
		cancel()
		synctest.Wait()
		fresh := board(t.Context(), &f, func(context.Context) (int, error) { return 1, nil })
		if o := <-fresh; o.joined || o.value != 1 {
			t.Errorf("who comes while the cancelled one cleans up got %+v", o)
		}
		select {
		case o := <-out:
			t.Errorf("%+v came before the clean-up ended", o)
		default:
		}
		close(cleaned)
		if o := <-out; !errors.Is(o.err, context.Canceled) || !undone {
			t.Errorf("got %+v, undone %v", o, undone)
		}
	})
}

func TestClosedFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f flights[string, int]
		closed := errors.New("closed")
		out := board(t.Context(), &f, func(ctx context.Context) (int, error) {
			<-ctx.Done()
			return 0, context.Cause(ctx)
		})
		f.close(closed)
		if o := <-out; !errors.Is(o.err, closed) {
			t.Errorf("who was on board got %+v", o)
		}
		if o := <-board(t.Context(), &f, nil); !errors.Is(o.err, closed) {
			t.Errorf("who comes later got %+v", o)
		}
	})
}
