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

// busyError is the answer of a registry that says when to come back (Retry-After, RFC 9110, 10.2.3).
type busyError struct {
	status string
	after  time.Duration
}

func (e *busyError) Error() string {
	return fmt.Sprintf("the registry answers %s and asks to come back in %s", e.status, e.after)
}

func (e *busyError) Unwrap() error { return errdefs.ErrUnavailable }

// polite makes an error of an answer that says when to come back: the registry library knows no such
// pause and would repeat the request at once.
type polite struct{ http.RoundTripper }

func (p polite) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := p.RoundTripper.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return resp, err
	}
	after, ok := retryAfter(resp.Header.Get("Retry-After"), time.Now())
	if !ok {
		return resp, nil
	}
	_ = resp.Body.Close()
	return nil, &busyError{status: resp.Status, after: after}
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
	var busy *busyError
	if errors.As(err, &busy) {
		return busy.after
	}
	return 0
}
