package streaming_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"gantry/internal/engine"
	"gantry/internal/streaming"
)

// spdyConn is a client that opens its streams by itself.
func spdyConn(t *testing.T, address, version string) httpstream.Connection {
	t.Helper()
	rt, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, version)
	res, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	conn, err := rt.NewConnection(res)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func openStream(c httpstream.Connection, kind string) (httpstream.Stream, error) {
	return c.CreateStream(http.Header{"Streamtype": {kind}})
}

// Streams beyond those that were announced are refused, and the others are served as ever.
func TestStreamsThatNobodyAnnounced(t *testing.T) {
	b := &backend{exec: func(_ context.Context, req *engine.Exec) (int32, error) {
		_, err := io.Copy(req.IO.Stdout, req.IO.Stdin)
		return 0, err
	}}
	s := start(t, b, streaming.Options{})
	c := spdyConn(t, execAddress(t, s, &cri.ExecRequest{Stdin: true, Stdout: true}), "v4.channel.k8s.io")
	streams := make(map[string]httpstream.Stream)
	for _, kind := range []string{"error", "stdout", "stdout", "stderr", "resize", "chatter", ""} {
		st, err := openStream(c, kind)
		if _, twice := streams[kind]; !twice && (kind == "error" || kind == "stdout") {
			if err != nil {
				t.Fatal(err)
			}
			streams[kind] = st
		} else if err == nil {
			t.Errorf("a stream %q was not refused", kind)
		}
	}
	in, err := openStream(c, "stdin")
	if err != nil {
		t.Fatal(err)
	}
	for range 100 { // more than there are workers for frames
		if _, err = openStream(c, "stdin"); err == nil {
			t.Error("a second stdin was not refused")
		}
	}
	_, _ = io.WriteString(in, "through")
	_ = in.Close()
	if out, _ := io.ReadAll(streams["stdout"]); string(out) != "through" {
		t.Errorf("got %q", out)
	}
	if st, _ := io.ReadAll(streams["error"]); !strings.Contains(string(st), "Success") {
		t.Errorf("got %q", st)
	}
}

// A client that never opens its streams keeps nothing once it has left.
func TestClientThatLeavesBeforeItsStreams(t *testing.T) {
	s := start(t, &backend{}, streaming.Options{})
	c := spdyConn(t, execAddress(t, s, &cri.ExecRequest{Stdout: true}), "v4.channel.k8s.io")
	if _, err := openStream(c, "error"); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if !eventually(func() bool { return !strings.Contains(strings.Join(goroutines(), ""), "serveExec") }) {
		t.Error("its handler waits for it")
	}
}

// A connection without a byte in either direction ends, with what was run for it.
func TestSilenceEndsAConnection(t *testing.T) {
	b := &backend{exec: func(ctx context.Context, _ *engine.Exec) (int32, error) {
		<-ctx.Done()
		return 0, ctx.Err()
	}}
	s := start(t, b, streaming.Options{Idle: 200 * time.Millisecond})
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			// A client whose connection ends before its streams were answered waits for the answers first.
			ctx, leave := context.WithTimeout(t.Context(), patience)
			defer leave()
			_ = connectOver(t, p.connect, execAddress(t, s, &cri.ExecRequest{Stdout: true})).StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard})
			if !eventually(func() bool { return b.running.Load() == 0 }) || ctx.Err() != nil {
				t.Error("the connection goes on")
			}
		})
	}
}

// Two hundred commands at once, of which every second loses its client, whatever the protocol: the
// others are served, and no goroutine and no descriptor stays.
func TestManyClientsOfWhichHalfVanish(t *testing.T) {
	const clients, connecting = 200, 8 // so many open their streams at one time: there is a limit to how long that may take
	began, early := make(chan struct{}, clients), make(chan error, clients)
	release := make(chan struct{})
	b := &backend{exec: func(ctx context.Context, req *engine.Exec) (int32, error) {
		began <- struct{}{}
		select {
		case <-ctx.Done():
		case <-release:
		}
		_, err := io.WriteString(req.IO.Stdout, "served")
		return 0, errors.Join(err, ctx.Err())
	}}
	s := start(t, b, streaming.Options{})
	before := descriptors(t)
	ctx, leave := context.WithCancel(t.Context())
	var staying, leaving sync.WaitGroup
	defer leave()
	var vanish []func()
	awaitOne := func() {
		select {
		case <-began:
		case err := <-early:
			t.Fatalf("a client ended before its time: %v", err)
		}
	}
	for i := range clients {
		if i >= connecting {
			awaitOne()
		}
		address := execAddress(t, s, &cri.ExecRequest{Stdin: true, Stdout: true, Stderr: true})
		stays := i%2 == 0
		if !stays {
			var cut func()
			address, cut = between(t, address)
			vanish = append(vanish, cut)
		}
		e := connectOver(t, protocols[i/2%len(protocols)].connect, address)
		wg := &leaving
		if stays {
			wg = &staying
		}
		wg.Go(func() {
			in, end := io.Pipe()
			defer func() { _ = end.Close() }()
			var out strings.Builder
			err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Stderr: io.Discard})
			select {
			case <-release:
			default:
				early <- err
			}
			if stays && (err != nil || out.String() != "served") {
				t.Errorf("%v, %q", err, out.String())
			}
		})
	}
	for range connecting {
		awaitOne()
	}
	for _, cut := range vanish {
		cut()
	}
	if !eventually(func() bool { return b.running.Load() == clients/2 }) {
		t.Errorf("%d commands go on, want %d", b.running.Load(), clients/2)
	}
	close(release)
	staying.Wait()
	leave()
	leaving.Wait()
	wantNoConnections(t)
	if !eventually(func() bool { return descriptors(t) <= before }) {
		t.Errorf("%d descriptors, before there were %d", descriptors(t), before)
	}
}

// wantNoConnections waits until nothing runs but the server itself.
func wantNoConnections(t *testing.T) {
	t.Helper()
	var left []string
	if !eventually(func() bool {
		left = left[:0]
		for _, g := range goroutines() {
			if !strings.Contains(g, "streaming.(*Server).Serve(") {
				left = append(left, g)
			}
		}
		return len(left) == 0
	}) {
		t.Errorf("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	http.DefaultTransport.(interface{ CloseIdleConnections() }).CloseIdleConnections()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
