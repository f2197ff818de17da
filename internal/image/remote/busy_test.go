package remote_test

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gantry/internal/image/remote"
	"gantry/internal/labimage"
)

// busyPause is the first pause after a busy registry's answer, with the backoff that session has.
const busyPause = 5 * time.Millisecond

func TestTheRegistrySaysWhenToComeBack(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		after  func() string
		least  time.Duration // between the refusal and the next request
	}{
		"seconds":         {http.StatusTooManyRequests, func() string { return "1" }, time.Second},
		"unavailable":     {http.StatusServiceUnavailable, func() string { return "1" }, time.Second},
		"a date":          {http.StatusTooManyRequests, func() string { return in(3 * time.Second) }, time.Second},
		"a date gone by":  {http.StatusTooManyRequests, func() string { return in(-time.Hour) }, 0},
		"neither of both": {http.StatusTooManyRequests, func() string { return "soon" }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := labimage.Registry(t, labimage.Config{})
			s, desc := session(t, r, nil)
			var mu sync.Mutex
			var came []time.Time
			refuse := labimage.Times(1, func(w http.ResponseWriter, req *http.Request, next http.Handler) bool {
				return labimage.Busy(c.status, c.after())(w, req, next)
			})
			r.SetFault(labimage.On("GET", "/blobs/", func(w http.ResponseWriter, req *http.Request, next http.Handler) bool {
				mu.Lock()
				came = append(came, time.Now())
				mu.Unlock()
				return refuse(w, req, next)
			}))
			if _, err := s.Read(t.Context(), desc, desc.Size); err != nil {
				t.Fatal(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(came) != 2 {
				t.Fatalf("%d requests", len(came))
			}
			if waited := came[1].Sub(came[0]); waited < c.least {
				t.Errorf("came back after %s, asked to after %s", waited, c.least)
			}
		})
	}
}

func TestWhoAsksForTooLongIsNotAskedAgain(t *testing.T) {
	for name, after := range map[string]string{
		"an hour": "3600", "a date": in(24 * time.Hour), "no number at all": strings.Repeat("9", 40),
	} {
		t.Run(name, func(t *testing.T) {
			r := labimage.Registry(t, labimage.Config{})
			s, desc := session(t, r, nil)
			r.SetFault(labimage.Busy(http.StatusTooManyRequests, after))
			before := r.Requests(http.MethodHead, "")
			_, err := s.Resolve(t.Context())
			if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "429 Too Many Requests and asks to come back in") {
				t.Errorf("resolve: %v", err)
			}
			if n := r.Requests(http.MethodHead, "") - before; n != 1 {
				t.Errorf("%d requests to resolve", n)
			}
			if _, err = s.Read(t.Context(), desc, desc.Size); !errdefs.IsUnavailable(err) {
				t.Errorf("read: %v", err)
			}
			if n := r.Requests(http.MethodGet, "/blobs/"); n != 1 {
				t.Errorf("%d requests to read", n)
			}
		})
	}
}

// Every request to a registry that is busy and does not say for how long comes later than the one before.
func TestABusyRegistryIsLeftInPeace(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		method, part string
		status       int
		ask          func(context.Context, *remote.Session, ocispec.Descriptor) error
	}{
		"resolving": {"HEAD", "/manifests/", http.StatusTooManyRequests, resolve},
		"fetching":  {"GET", "/blobs/", http.StatusTooManyRequests, fetch},
		"timeouts":  {"GET", "/blobs/", http.StatusRequestTimeout, fetch},
		"overload":  {"HEAD", "/manifests/", http.StatusServiceUnavailable, resolve},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := labimage.Registry(t, labimage.Config{})
			s, desc := session(t, r, nil)
			var mu sync.Mutex
			var came []time.Time
			r.SetFault(labimage.On(c.method, c.part, func(w http.ResponseWriter, req *http.Request, next http.Handler) bool {
				mu.Lock()
				came = append(came, time.Now())
				mu.Unlock()
				return labimage.Status(c.status)(w, req, next)
			}))
			err := c.ask(t.Context(), s, desc)
			if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), strconv.Itoa(c.status)) {
				t.Errorf("error %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(came) != 4 {
				t.Fatalf("%d requests, want 4", len(came))
			}
			least := busyPause
			for i, at := range came[1:] {
				if waited := at.Sub(came[i]); waited < least {
					t.Errorf("request %d came %s after the one before, want %s", i+2, waited, least)
				}
				least *= 2
			}
		})
	}
}

func resolve(ctx context.Context, s *remote.Session, _ ocispec.Descriptor) error {
	_, err := s.Resolve(ctx)
	return err
}

func fetch(ctx context.Context, s *remote.Session, desc ocispec.Descriptor) error {
	_, err := s.Read(ctx, desc, desc.Size)
	return err
}

// in is the time after d as HTTP writes it.
func in(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }
