package streaming_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/engine"
	"gantry/internal/streaming"
)

func execAddress(t *testing.T, s *streaming.Server, req *cri.ExecRequest) string {
	t.Helper()
	req.ContainerId = "c"
	u, err := s.Exec(req)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestExecThatSucceeds(t *testing.T) {
	b := &backend{exec: func(_ context.Context, req *engine.Exec) (int32, error) {
		if req.IO.Stdin != nil || req.IO.Stderr != nil || req.IO.Resize != nil {
			return 0, errors.New("streams that nobody asked for")
		}
		return 0, nil
	}}
	s := start(t, b, streaming.Options{})
	if err := dial(t, execAddress(t, s, &cri.ExecRequest{Stdout: true}), remotecommand.StreamOptions{Stdout: io.Discard}); err != nil {
		t.Error(err)
	}
}

func TestExecThatCannotStartTellsWhy(t *testing.T) {
	b := &backend{exec: func(context.Context, *engine.Exec) (int32, error) {
		return 0, fmt.Errorf("no such file: %w", errdefs.ErrInvalidArgument)
	}}
	s := start(t, b, streaming.Options{})
	err := dial(t, execAddress(t, s, &cri.ExecRequest{Stdout: true}), remotecommand.StreamOptions{Stdout: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("got %v", err)
	}
}

func TestAttach(t *testing.T) {
	b := &backend{attach: func(_ context.Context, s engine.IO) error {
		_, err := io.WriteString(s.Stdout, "attached")
		return err
	}}
	s := start(t, b, streaming.Options{})
	u, err := s.Attach(&cri.AttachRequest{ContainerId: "c", Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := dial(t, u, remotecommand.StreamOptions{Stdout: &out}); err != nil || out.String() != "attached" {
		t.Errorf("%v, %q", err, out.String())
	}
}

// A client that vanishes ends what was run for it, whatever that is doing.
func TestVanishedClient(t *testing.T) {
	for _, c := range []struct {
		rule string
		req  *cri.ExecRequest
		exec func(context.Context, *engine.Exec) (int32, error)
	}{
		{"while the process is silent", &cri.ExecRequest{Stdout: true}, func(ctx context.Context, _ *engine.Exec) (int32, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}},
		{"while its output is not read", &cri.ExecRequest{Stdout: true}, func(ctx context.Context, req *engine.Exec) (int32, error) {
			for ctx.Err() == nil {
				if _, err := req.IO.Stdout.Write(make([]byte, 1<<16)); err != nil {
					return 0, err
				}
			}
			return 0, ctx.Err()
		}},
		{"while its input is not taken", &cri.ExecRequest{Stdin: true, Stdout: true}, func(ctx context.Context, _ *engine.Exec) (int32, error) {
			<-ctx.Done()
			return 0, ctx.Err()
		}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			began := make(chan struct{})
			b := &backend{exec: func(ctx context.Context, req *engine.Exec) (int32, error) {
				close(began)
				return c.exec(ctx, req)
			}}
			s := start(t, b, streaming.Options{})
			address, vanish := between(t, execAddress(t, s, c.req))
			e := connect(t, address)
			ctx, give := context.WithCancel(t.Context())
			defer give()
			done := make(chan error, 1)
			in := &endless{ctx: ctx}
			o := remotecommand.StreamOptions{Stdout: blocked{ctx}}
			if c.req.GetStdin() {
				o.Stdin = in
			}
			go func() { done <- e.StreamWithContext(ctx, o) }()
			<-began
			if c.req.GetStdin() && !eventually(in.stuck) {
				t.Error("input that nobody takes is not held back")
			}
			vanish()
			if !eventually(func() bool { return b.running.Load() == 0 }) {
				t.Error("the process outlives its client")
			}
			give()
			<-done
		})
	}
}

// blocked takes nothing as long as its client is there.
type blocked struct{ ctx context.Context }

func (b blocked) Write([]byte) (int, error) {
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}

// endless gives bytes as long as its client is there.
type endless struct {
	ctx    context.Context
	reads  atomic.Int64
	seen   int64 // reads, when stuck was asked last
	steady int   // how often it was asked since they were more
}

func (e *endless) Read(p []byte) (int, error) {
	e.reads.Add(1)
	return len(p), e.ctx.Err()
}

// stuck says whether nobody has read for a while.
func (e *endless) stuck() bool {
	n := e.reads.Load()
	if e.steady++; n != e.seen || n == 0 {
		e.seen, e.steady = n, 0
	}
	return e.steady > 20
}

func TestCloseEndsStreams(t *testing.T) {
	began := make(chan struct{})
	b := &backend{exec: func(ctx context.Context, _ *engine.Exec) (int32, error) {
		close(began)
		<-ctx.Done()
		return 0, ctx.Err()
	}}
	s := start(t, b, streaming.Options{})
	e := connect(t, execAddress(t, s, &cri.ExecRequest{Stdout: true}))
	done := make(chan error, 1)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	go func() { done <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard}) }()
	<-began
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if n := b.running.Load(); n != 0 {
		t.Error("Close returned before the backend did")
	}
	leave()
	<-done
}

func TestAddressesAreGoodForOneUse(t *testing.T) {
	b := &backend{exec: func(context.Context, *engine.Exec) (int32, error) { return 0, nil }}
	s := start(t, b, streaming.Options{})
	u := execAddress(t, s, &cri.ExecRequest{Stdout: true})
	if err := dial(t, u, remotecommand.StreamOptions{Stdout: io.Discard}); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, u, http.StatusNotFound)
	wantStatus(t, "http://"+s.Addr().String()+"/exec/guessed", http.StatusNotFound)
	// What was promised for one purpose is not given for another, nor to a second try.
	u = strings.Replace(execAddress(t, s, &cri.ExecRequest{Stdout: true}), "/exec/", "/attach/", 1)
	wantStatus(t, u, http.StatusNotFound)
	wantStatus(t, strings.Replace(u, "/attach/", "/exec/", 1), http.StatusNotFound)
}

func wantStatus(t *testing.T, address string, want int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != want {
		t.Errorf("%s: %s, want %d", address, res.Status, want)
	}
}

func TestAddressesAreNotHandedOutWithoutEnd(t *testing.T) {
	s := start(t, &backend{}, streaming.Options{})
	for range 1000 {
		execAddress(t, s, &cri.ExecRequest{})
	}
	if _, err := s.Exec(&cri.ExecRequest{}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("got %v", err)
	}
}

func TestAddressesExpire(t *testing.T) {
	// The listener stays outside the bubble: its goroutines are not durably blocked.
	s, err := streaming.New(&backend{}, streaming.Options{Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	synctest.Test(t, func(t *testing.T) {
		for range 1000 {
			execAddress(t, s, &cri.ExecRequest{})
		}
		time.Sleep(61 * time.Second) // of the bubble's clock
		if _, err := s.Exec(&cri.ExecRequest{}); err != nil {
			t.Errorf("expired addresses still count: %v", err)
		}
	})
}

func TestPortInUse(t *testing.T) {
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	if _, err := streaming.New(&backend{}, streaming.Options{Listen: ln.Addr().String()}); err == nil {
		t.Error("two servers on one port")
	}
}
