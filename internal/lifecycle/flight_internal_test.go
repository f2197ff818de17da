package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// A client that asks again after so long that the attempt undoes itself already is not told that nobody waits for it.
func TestWhoAsksWhileAnAttemptIsUndoneGetsAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlights[string](time.Minute)
		attempts, undone := 0, make(chan struct{})
		attempt := func(ctx context.Context) (string, error) {
			if attempts++; attempts > 1 {
				return "made", nil
			}
			<-ctx.Done()
			<-undone
			return "", context.Cause(ctx)
		}
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := f.do(impatient, "key", attempt); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who gave up: %v", err)
		}
		<-time.After(2 * time.Minute) // of the bubble's clock
		go func() {
			synctest.Wait()
			close(undone)
		}()
		if got, err := f.do(t.Context(), "key", attempt); got != "made" || err != nil {
			t.Errorf("who asked again: %q, %v", got, err)
		}
		if len(f.by) != 0 {
			t.Errorf("%d attempts are left", len(f.by))
		}
	})
}

// Work that is asked for while the same is about to succeed is done: it may be about more.
func TestRetryThatIsAskedForMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		m := &Manager{ctx: ctx, log: slog.New(slog.DiscardHandler), retrying: make(map[string]*retried)}
		done := make(chan string, 3)
		m.retry("it", func(context.Context) error {
			m.retry("it", func(context.Context) error { done <- "second"; return nil })
			done <- "first"
			return nil
		})
		<-time.After(time.Hour) // of the bubble's clock
		cancel()
		m.work.Wait()
		close(done)
		var all []string
		for what := range done {
			all = append(all, what)
		}
		if len(all) != 2 || all[1] != "second" {
			t.Errorf("done was %q", all)
		}
		if len(m.retrying) != 0 {
			t.Error("it is tried for ever")
		}
	})
}
