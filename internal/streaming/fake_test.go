package streaming_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"

	"gantry/internal/engine"
	"gantry/internal/streaming"
)

// backend is what streams are connected to. Running counts the calls that have not returned.
type backend struct {
	running atomic.Int64
	exec    func(ctx context.Context, req *engine.Exec) (int32, error)
	attach  func(ctx context.Context, s engine.IO) error
	forward func(ctx context.Context, port int32, stream io.ReadWriteCloser) error
}

func (b *backend) Exec(ctx context.Context, _ string, req *engine.Exec) (int32, error) {
	b.running.Add(1)
	defer b.running.Add(-1)
	return b.exec(ctx, req)
}

func (b *backend) Attach(ctx context.Context, _ string, s engine.IO) error {
	b.running.Add(1)
	defer b.running.Add(-1)
	return b.attach(ctx, s)
}

func (b *backend) PortForward(ctx context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
	b.running.Add(1)
	defer b.running.Add(-1)
	return b.forward(ctx, port, stream)
}

// start serves b until the test ends, and then wants every goroutine of it to end.
func start(t *testing.T, b *backend, o streaming.Options) *streaming.Server {
	t.Helper()
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	s, err := streaming.New(b, o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := errors.Join(s.Close(ctx), <-served); err != nil {
			t.Error(err)
		}
		if n := b.running.Load(); n != 0 {
			t.Errorf("%d calls of the backend go on", n)
		}
		wantNoGoroutines(t)
	})
	return s
}

// wantNoGoroutines waits until nothing of this package and of the protocols runs any more.
func wantNoGoroutines(t *testing.T) {
	t.Helper()
	var left []string
	if !eventually(func() bool { left = goroutines(); return len(left) == 0 }) {
		t.Errorf("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
	}
}

// goroutines leaves out client-go's: a client that is cut off waits half a minute for an answer.
func goroutines() []string {
	buf := make([]byte, 4<<20)
	var out []string
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		theirs := strings.Contains(g, "gantry/internal/streaming.") || strings.Contains(g, "spdystream") || strings.Contains(g, "gorilla/websocket")
		if theirs && !strings.Contains(g, "testing.tRunner(") && !strings.Contains(g, "client-go") {
			out = append(out, g)
		}
	}
	return out
}

// patience is how long tests wait for what happens at once on a machine that has time: twice as long as client-go
// waits for an answer that never comes.
const patience = time.Minute

// eventually asks until the answer is yes, for as long as there is patience.
func eventually(yes func() bool) bool {
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !yes() {
		select {
		case <-deadline:
			return false
		case <-tick.C:
		}
	}
	return true
}

// protocols are all that a command can be run over, each with a real client.
var protocols = []struct {
	name      string
	exitCodes bool // the protocol tells them
	halfClose bool // the protocol tells the end of the input
	sizes     bool // the protocol tells a terminal's size
	connect   func(*rest.Config, *url.URL) (remotecommand.Executor, error)
}{
	{"SPDY v4", true, true, true, spdyClient("v4.channel.k8s.io")},
	{"SPDY v3", false, true, true, spdyClient("v3.channel.k8s.io")},
	{"SPDY v2", false, true, false, spdyClient("v2.channel.k8s.io")},
	{"SPDY v1", false, false, false, spdyClient("channel.k8s.io")},
	{"WebSocket v5", true, true, true, webSocketClient("v5.channel.k8s.io")},
	{"WebSocket v4", true, false, true, webSocketClient("v4.channel.k8s.io")},
}

func spdyClient(version string) func(*rest.Config, *url.URL) (remotecommand.Executor, error) {
	return func(c *rest.Config, u *url.URL) (remotecommand.Executor, error) {
		transport, upgrader, err := spdy.RoundTripperFor(c)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutorForProtocols(transport, upgrader, http.MethodPost, u, version)
	}
}

func webSocketClient(version string) func(*rest.Config, *url.URL) (remotecommand.Executor, error) {
	return func(c *rest.Config, u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutorForProtocols(c, http.MethodGet, u.String(), version)
	}
}

// dial connects to an address as the kubelet does, over SPDY v4.
func dial(t *testing.T, address string, o remotecommand.StreamOptions) error {
	t.Helper()
	return connect(t, address).StreamWithContext(t.Context(), o)
}

func connect(t *testing.T, address string) remotecommand.Executor {
	t.Helper()
	return connectOver(t, protocols[0].connect, address)
}

func connectOver(t *testing.T, client func(*rest.Config, *url.URL) (remotecommand.Executor, error), address string) remotecommand.Executor {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	e, err := client(&rest.Config{Host: u.Host}, u)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// between puts a wire between a client and an address, which vanish cuts without a word.
func between(t *testing.T, address string) (through string, vanish func()) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ends, target := make(chan net.Conn, 2), u.Host
	go func() {
		client, err := ln.Accept()
		if err != nil {
			return
		}
		var d net.Dialer
		server, err := d.DialContext(t.Context(), "tcp", target)
		if err != nil {
			_ = client.Close()
			return
		}
		ends <- client
		ends <- server
		// Two TCP connections would be spliced through pipes, which Go keeps until its garbage is collected.
		type read struct{ io.Reader }
		type write struct{ io.Writer }
		go func() { _, _ = io.Copy(write{client}, read{server}) }()
		_, _ = io.Copy(write{server}, read{client})
	}()
	u.Host = ln.Addr().String()
	return u.String(), func() {
		for range 2 {
			c := <-ends
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
		_ = ln.Close()
	}
}
