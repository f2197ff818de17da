package streaming_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/engine"
	"gantry/internal/streaming"
)

func TestExecMovesBytesAndTellsTheExitCode(t *testing.T) {
	b := &backend{exec: func(_ context.Context, req *engine.Exec) (int32, error) {
		in := make([]byte, 5)
		_, err := io.ReadFull(req.IO.Stdin, in)
		if len(req.Args) == 3 { // all of it
			var rest []byte
			rest, err = io.ReadAll(req.IO.Stdin)
			in = append(in, rest...)
		}
		fmt.Fprintf(req.IO.Stdout, "%s got %s", req.Args[0], in)
		fmt.Fprint(req.IO.Stderr, "oops")
		code, _ := strconv.ParseInt(req.Args[1], 10, 32)
		return int32(code), err
	}}
	s := start(t, b, streaming.Options{})
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			req := &cri.ExecRequest{Cmd: []string{"a", "7"}, Stdin: true, Stdout: true, Stderr: true}
			if p.halfClose {
				req.Cmd = append(req.Cmd, "reads all")
			} else if !p.exitCodes {
				req.Cmd[1] = "0" // the client of v1 waits either for an error or for the output
			}
			var out, errOut bytes.Buffer
			e := connectOver(t, p.connect, execAddress(t, s, req))
			err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("input"), Stdout: &out, Stderr: &errOut})
			var code exec.CodeExitError
			if p.exitCodes && (!errors.As(err, &code) || code.Code != 7) {
				t.Errorf("got %v, want exit code 7", err)
			}
			if !p.exitCodes && p.halfClose && (err == nil || !strings.Contains(err.Error(), "exit status 7")) {
				t.Errorf("got %v, want exit status 7", err)
			}
			if out.String() != "a got input" || errOut.String() != "oops" {
				t.Errorf("stdout %q, stderr %q", out.String(), errOut.String())
			}
		})
	}
}

// A hundred megabytes go in and come out at the same time, as they were.
func TestLargeDataBothWays(t *testing.T) {
	const size = 100 << 20
	b := &backend{exec: func(_ context.Context, req *engine.Exec) (int32, error) {
		_, err := io.CopyN(req.IO.Stdout, req.IO.Stdin, size)
		return 0, err
	}}
	s := start(t, b, streaming.Options{})
	for _, p := range protocols {
		if testing.Short() && p.name != "WebSocket v5" && p.name != "SPDY v4" {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			e := connectOver(t, p.connect, execAddress(t, s, &cri.ExecRequest{Stdin: true, Stdout: true}))
			in, out := sha256.New(), sha256.New()
			src := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), in)
			err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: src, Stdout: out})
			if err != nil || !bytes.Equal(in.Sum(nil), out.Sum(nil)) {
				t.Errorf("%v, other bytes came back than went", err)
			}
		})
	}
}

// What a process wrote arrives although it did not take its input: closing a connection with unread
// bytes would throw away what is under way.
func TestOutputSurvivesInputThatNobodyTook(t *testing.T) {
	const size = 8 << 20
	b := &backend{exec: func(_ context.Context, req *engine.Exec) (int32, error) {
		_, err := io.CopyN(req.IO.Stdout, rand.NewChaCha8([32]byte{}), size)
		return 3, err
	}}
	s := start(t, b, streaming.Options{})
	for _, p := range protocols {
		if !p.exitCodes {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			e := connectOver(t, p.connect, execAddress(t, s, &cri.ExecRequest{Stdin: true, Stdout: true}))
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			var out bytes.Buffer
			err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: &endless{ctx: ctx}, Stdout: &out})
			var code exec.CodeExitError
			if !errors.As(err, &code) || code.Code != 3 || out.Len() != size {
				t.Errorf("%v, %d bytes of output", err, out.Len())
			}
		})
	}
}

// terminal gives the sizes of a terminal, one by one.
type terminal chan remotecommand.TerminalSize

func (c terminal) Next() *remotecommand.TerminalSize {
	if s, ok := <-c; ok {
		return &s
	}
	return nil
}

func TestTerminalIsResized(t *testing.T) {
	b := &backend{exec: func(ctx context.Context, req *engine.Exec) (int32, error) {
		if !req.TTY || req.IO.Stderr != nil {
			return 1, nil
		}
		for want := range uint16(3) {
			select {
			case sz := <-req.IO.Resize:
				fmt.Fprintf(req.IO.Stdout, "%dx%d ", sz.Width, sz.Height)
				if sz.Width != 80+want {
					return 2, nil
				}
			case <-ctx.Done():
				return 3, nil
			}
		}
		return 0, nil
	}}
	s := start(t, b, streaming.Options{})
	for _, p := range protocols {
		if !p.sizes {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			address := execAddress(t, s, &cri.ExecRequest{Tty: true, Stdin: true, Stdout: true})
			resize(t, connectOver(t, p.connect, address))
		})
	}
}

// resize gives a terminal another size whenever the last was seen.
func resize(t *testing.T, e remotecommand.Executor) {
	t.Helper()
	sizes := make(terminal)
	out, sizesSeen := io.Pipe()
	go func() {
		defer close(sizes)
		buf := make([]byte, 64)
		for i := range uint16(3) {
			sizes <- remotecommand.TerminalSize{Width: 80 + i, Height: 24}
			if _, err := out.Read(buf); err != nil {
				return
			}
		}
		_, _ = io.Copy(io.Discard, out)
	}()
	in, inEnd := io.Pipe()
	err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: in, Stdout: sizesSeen, Tty: true, TerminalSizeQueue: sizes})
	if err != nil {
		t.Error(err)
	}
	_, _ = inEnd.Close(), sizesSeen.Close()
}

func TestUnknownProtocolsAreRefused(t *testing.T) {
	s := start(t, &backend{}, streaming.Options{})
	for _, c := range []struct {
		rule   string
		header http.Header
		status int
	}{
		{"no upgrade", nil, http.StatusBadRequest},
		{"SPDY without a version of commands", http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}}, http.StatusBadRequest},
		{"SPDY with an unknown version", http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {"v9"}}, http.StatusForbidden},
		{"WebSocket with an unknown protocol", http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Protocol": {"chat"}}, http.StatusBadRequest},
	} {
		t.Run(c.rule, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, execAddress(t, s, &cri.ExecRequest{Stdout: true}), nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Close = true
			for k, v := range c.header {
				req.Header[k] = v
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			if res.StatusCode != c.status {
				t.Errorf("got %s, want %d", res.Status, c.status)
			}
		})
	}
}
