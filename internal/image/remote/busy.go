package remote

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
)

// patience is the longest time that a registry may ask for and be waited for. Who asks for more, as
// after the pulls of a day are used up, gets no further request: the caller hears it at once.
const patience = time.Minute

// busyError is the answer of a registry that has too much to do.
type busyError struct {
	status string
	said   bool          // it says when to come back (Retry-After, RFC 9110, 10.2.3)
	after  time.Duration // what it says
}

func (e *busyError) Error() string {
	if !e.said {
		return "the registry answers " + e.status
	}
	return fmt.Sprintf("the registry answers %s and asks to come back in %s", e.status, e.after)
}

func (e *busyError) Unwrap() error { return errdefs.ErrUnavailable }

// polite makes an error of the answer of a busy registry, which the library would ask again at once: how
// long to wait is decided where attempts are counted.
type polite struct{ http.RoundTripper }

func (p polite) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := p.RoundTripper.RoundTrip(req)
	if err != nil || !busy(resp.StatusCode) {
		return resp, err
	}
	after, said := retryAfter(resp.Header.Get("Retry-After"), time.Now())
	_ = resp.Body.Close()
	return nil, &busyError{status: resp.Status, said: said, after: after}
}

func busy(status int) bool {
	return status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable || status == http.StatusRequestTimeout
}

// CloseIdleConnections is what http.Client looks for.
func (p polite) CloseIdleConnections() {
	if c, ok := p.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// retryAfter reads a number of seconds or a date.
func retryAfter(value string, now time.Time) (time.Duration, bool) {
	const most = 1 << 30 // seconds; more would overflow
	if n, err := strconv.ParseUint(value, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(n, most)) * time.Second, true
	}
	if t, err := http.ParseTime(value); err == nil {
		return max(t.Sub(now).Round(time.Second), 0), true
	}
	return 0, false
}

// asked is the pause that err's registry asked for; 0 is none.
func asked(err error) time.Duration {
	var refused *busyError
	if errors.As(err, &refused) {
		return refused.after
	}
	return 0
}

// busyFactor is how many times longer than after another fault a busy registry is left in peace.
const busyFactor = 5

// backoff is how long to wait after the given attempt ended with err: what the registry asked for, else
// twice as long as the time before.
func (c *Client) backoff(attempt int, err error) time.Duration {
	pause := c.opts.Backoff << (attempt - 1)
	var refused *busyError
	switch {
	case !errors.As(err, &refused):
		return pause
	case refused.said:
		return max(pause, refused.after)
	}
	return busyFactor * pause
}
