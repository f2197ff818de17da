// Package admin is the local administrator's door: a small HTTP server on a unix socket that only
// root can open, with profiles, the pulls under way, what was built, and what the CRI has no call for.
// What is asked for with GET changes nothing.
package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime/debug"

	"gantry/internal/nri"
)

// SocketName is the socket's name in the server's state directory.
const SocketName = "admin.sock"

// Build says what runs.
type Build struct {
	Version   string            `json:"version"`
	Go        string            `json:"go"`
	Revision  string            `json:"revision,omitempty"`
	Modified  bool              `json:"modified,omitempty"`
	Modules   map[string]string `json:"modules"` // path to version
	StateDir  string            `json:"stateDir"`
	Streaming string            `json:"streaming"` // address of exec, attach and port-forward
}

// ReadBuild fills in what the Go toolchain recorded.
func ReadBuild(b Build) Build {
	b.Modules = map[string]string{}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Go = info.GoVersion
	for _, m := range info.Deps {
		b.Modules[m.Path] = m.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

// Parts are what a handler speaks for.
type Parts struct {
	Pulls  *Pulls
	Build  Build
	Images Images // nil where there is no native image store
	// Plugins lists the NRI plugins that there are and were; nil where there can be none.
	Plugins func() []nri.Plugin
	// Foreign tells what another runtime has left; nil where there is no engine that could know.
	Foreign func(context.Context) (Foreign, error)
}

// Handler answers GET /pulls, /plugins, /build, /foreign and /debug/pprof/, and what handleImages says.
func Handler(p Parts) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /pulls", func(w http.ResponseWriter, _ *http.Request) { answer(w, p.Pulls.List()) })
	mux.HandleFunc("GET /build", func(w http.ResponseWriter, _ *http.Request) { answer(w, p.Build) })
	if p.Plugins != nil {
		mux.HandleFunc("GET /plugins", func(w http.ResponseWriter, _ *http.Request) { answer(w, p.Plugins()) })
	}
	if p.Foreign != nil {
		handleForeign(mux, p.Foreign)
	}
	if p.Images != nil {
		handleImages(mux, p.Images)
	}
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client left
}

// Client asks the server whose admin socket is at a path.
type Client struct{ http *http.Client }

// NewClient returns a client; it connects when it is asked something.
func NewClient(socket string) *Client {
	var d net.Dialer
	return &Client{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) },
	}}}
}

// Pulls lists the pulls under way.
func (c *Client) Pulls(ctx context.Context) ([]Pull, error) { return ask[[]Pull](ctx, c, "pulls") }

// Plugins lists the NRI plugins that are connected, and those that were lost.
func (c *Client) Plugins(ctx context.Context) ([]nri.Plugin, error) {
	return ask[[]nri.Plugin](ctx, c, "plugins")
}

// ask gets what the server has at a path.
func ask[T any](ctx context.Context, c *Client, what string) (T, error) {
	var said T
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://admin/"+what, nil)
	if err != nil {
		return said, fmt.Errorf("ask for %s: %w", what, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return said, fmt.Errorf("ask for %s: %w", what, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return said, fmt.Errorf("ask for %s: %s", what, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&said); err != nil {
		return said, fmt.Errorf("ask for %s: %w", what, err)
	}
	return said, nil
}

// Close gives up idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }
