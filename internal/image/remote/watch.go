package remote

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// watch ends a context when the registry has sent nothing for the stall deadline. The time in which
// nobody waits for the registry does not count.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	stall  time.Duration
	timer  *time.Timer
}

func (c *Client) watch(ctx context.Context) *watch {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &watch{ctx: ctx, cancel: cancel, stall: c.opts.Stall}
	w.timer = time.AfterFunc(time.Hour, func() {
		cancel(fmt.Errorf("the registry sent no byte for %s: %w", w.stall, errStalled))
	})
	w.timer.Stop()
	return w
}

func (w *watch) start() { w.timer.Reset(w.stall) }
func (w *watch) stop()  { w.timer.Stop() }

func (w *watch) end() {
	w.timer.Stop()
	w.cancel(nil)
}

// classify gives err its class, and the reason for which the context ended if that is why it came.
func (w *watch) classify(err error) error {
	if err == nil {
		return nil
	}
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	return classify(err)
}

// stalled is an ErrUnavailable that is not worth another attempt: a minute was spent already.
type stalled struct{}

var errStalled error = stalled{}

func (stalled) Error() string { return "deadline of progress" }
func (stalled) Unwrap() error { return errdefs.ErrUnavailable }
