package daemon

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
)

// calls is a gRPC server with a call that ends when it is told so.
type calls struct {
	cancelled bool
	over      chan struct{}
}

func (c *calls) GracefulStop() { <-c.over }
func (c *calls) Stop()         { c.cancelled = true }

// A call that hangs whatever becomes of its context keeps no server from its end.
func TestCallThatHangsIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &calls{over: make(chan struct{})}
		s := &server{log: slog.New(slog.DiscardHandler)}
		s.endCalls(c)
		if !c.cancelled {
			t.Error("the call was left behind before it was cancelled")
		}
		close(c.over)
		c.cancelled = false
		s.endCalls(c)
		if c.cancelled {
			t.Error("calls that have ended are cancelled")
		}
	})
}

// A part that hangs whatever its context says keeps no other from its end.
func TestPartThatHangsIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, closed, over := &server{}, false, make(chan struct{})
		s.onClose("state directory", func(context.Context) error { closed = true; return nil })
		s.onClose("plugins", func(context.Context) error { <-over; return nil })
		if err := s.close(); err == nil || !strings.Contains(err.Error(), "close plugins: it hangs") {
			t.Errorf("%v; want what hangs", err)
		}
		if !closed {
			t.Error("the state directory was not let go")
		}
		close(over)
	})
}
