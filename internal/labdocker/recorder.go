package labdocker

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httputil"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Request is one that was sent to an engine.
type Request struct {
	Method string
	// Path is without the API's version, and with "ID" for a container's or an image's id.
	Path string
	// ID is what stands as "ID" in the path, "" where nothing does.
	ID string
	// Query is what stands behind the path, as it was sent.
	Query string
	Began time.Time
	Took  time.Duration // until the answer's headers were there
}

func (r *Request) String() string { return r.Method + " " + r.Path }

// Recorder stands between a client and an engine, and notes what the client asks for.
type Recorder struct {
	socket string

	mu   sync.Mutex
	seen []Request // guarded by mu
}

// Record puts a Recorder before the engine until the test ends.
func (d *Daemon) Record() *Recorder {
	d.t.Helper()
	r := &Recorder{socket: filepath.Join(d.Run, "recorder.sock")}
	listener, err := (&net.ListenConfig{}).Listen(d.t.Context(), "unix", r.socket)
	if err != nil {
		d.t.Fatal(err)
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d.Socket())
	}
	server := &http.Server{ReadHeaderTimeout: startTime, Handler: &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", "docker"
		},
		Transport:     r.note(&http.Transport{DialContext: dial, MaxIdleConnsPerHost: 16}),
		FlushInterval: -1, // events, logs
	}}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			d.t.Errorf("recorder of Docker's API: %v", err)
		}
	}()
	d.t.Cleanup(func() {
		_ = server.Close()
		<-ended
	})
	return r
}

// Endpoint is the recorder's address, as DOCKER_HOST has it.
func (r *Recorder) Endpoint() string { return "unix://" + r.socket }

// Take returns what was asked for since the last call, in the order of the answers.
func (r *Recorder) Take() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := r.seen
	r.seen = nil
	return seen
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func (r *Recorder) note(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		began := time.Now()
		resp, err := next.RoundTrip(req)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.seen = append(r.seen, Request{
			Method: req.Method, Path: plainPath(req.URL.Path), ID: longID.FindString(req.URL.Path), Query: req.URL.RawQuery, Began: began, Took: time.Since(began),
		})
		return resp, err
	})
}

var (
	version = regexp.MustCompile(`^/v[0-9]+\.[0-9]+/`)
	longID  = regexp.MustCompile(`(sha256:)?[0-9a-f]{64}`)
)

func plainPath(path string) string {
	return longID.ReplaceAllString("/"+strings.TrimPrefix(version.ReplaceAllString(path, "/"), "/"), "ID")
}

// Count says how often each kind of request is among those.
func Count(requests []Request) map[string]int {
	count := make(map[string]int)
	for i := range requests {
		count[requests[i].String()]++
	}
	return count
}
