package enginetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
)

// notifier closes seen at the first byte.
type notifier struct {
	once sync.Once
	seen chan struct{}
}

func (n *notifier) Write(p []byte) (int, error) {
	n.once.Do(func() { close(n.seen) })
	return len(p), nil
}

// waitReady returns when the container's output came by attach, or is in its log: attach may have
// come after it.
func (b *bench) waitReady(log string, attached <-chan struct{}) {
	b.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if text, err := os.ReadFile(log); err == nil && bytes.Contains(text, []byte("ready")) {
			return
		}
		select {
		case <-attached:
			return
		case <-tick.C:
		case <-b.ctx.Done():
			b.t.Fatal("the container's first output did not come")
		}
	}
}

func execOutput(t *testing.T, b *bench) {
	s := b.create()
	key := b.running(s, b.Commands.Sleep)
	for rule, c := range map[string]struct {
		args        []string
		code        int32
		out, errOut string
	}{
		"exit code 0":              {args: b.Commands.Exit("0")},
		"any other exit code":      {args: b.Commands.Exit("42"), code: 42},
		"both streams, kept apart": {args: b.Commands.Echo("to out", "to err"), out: "to out", errOut: "to err"},
		"output as long as a pipe": {args: b.Commands.Echo(strings.Repeat("x", 100_000), ""), out: strings.Repeat("x", 100_000)},
	} {
		var out, errOut bytes.Buffer
		code, err := b.Engine.Exec(b.ctx, key, &engine.Exec{Args: c.args, IO: engine.IO{Stdout: &out, Stderr: &errOut}})
		b.must(rule, err)
		if code != c.code || out.String() != c.out || errOut.String() != c.errOut {
			t.Errorf("%s: code %d, %d bytes of output, %q; want %d, %d bytes, %q", rule, code, out.Len(), errOut.String(), c.code, len(c.out), c.errOut)
		}
	}
	code, err := b.Engine.Exec(b.ctx, key, &engine.Exec{Args: b.Commands.Exit("9")})
	b.must("exec without streams", err)
	if code != 9 {
		t.Errorf("without streams: code %d; want 9", code)
	}
	var terminal bytes.Buffer
	_, err = b.Engine.Exec(b.ctx, key, &engine.Exec{Args: b.Commands.Echo("out", "err"), TTY: true, IO: engine.IO{Stdout: &terminal}})
	b.must("exec with a terminal", err)
	if terminal.String() != "outerr" {
		t.Errorf("a terminal shows %q; want both streams", terminal.String())
	}
}

func execInput(t *testing.T, b *bench) {
	s := b.create()
	key := b.running(s, b.Commands.Sleep)
	text := strings.Repeat("all of it\n", 20_000)
	var out bytes.Buffer
	code, err := b.Engine.Exec(b.ctx, key, &engine.Exec{Args: b.Commands.Cat, IO: engine.IO{Stdin: strings.NewReader(text), Stdout: &out}})
	b.must("exec", err)
	if code != 0 || out.String() != text {
		t.Errorf("code %d and %d bytes came back; want 0 and %d", code, out.Len(), len(text))
	}
}

func execCancel(t *testing.T, b *bench) {
	s := b.create()
	key := b.running(s, b.Commands.Sleep)
	r, w := io.Pipe()
	defer func() { _ = w.Close() }()
	seen := make(chan struct{})
	ctx, cancel := context.WithCancel(b.ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := b.Engine.Exec(ctx, key, &engine.Exec{Args: b.Commands.Cat, IO: engine.IO{Stdin: r, Stdout: &notifier{seen: seen}}})
		ended <- err
	}()
	if _, err := io.WriteString(w, "it runs\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-seen:
	case <-b.ctx.Done():
		t.Fatal("the process wrote nothing")
	}
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v; want the context's error", err)
		}
	case <-b.ctx.Done():
		t.Fatal("exec goes on after its context ended")
	}
}

func execNotRunning(t *testing.T, b *bench) {
	events := b.watch()
	s := b.create()
	created := b.container(s, b.Commands.Sleep)
	exited := b.running(s, b.Commands.Exit("0"))
	b.exit(events, exited)
	req := &engine.Exec{Args: b.Commands.Exit("0")}
	if _, err := b.Engine.Exec(b.ctx, exited, req); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("in an exited container: %v; want ErrFailedPrecondition", err)
	}
	if _, err := b.Engine.Exec(b.ctx, created, req); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("in a created container: %v; want ErrFailedPrecondition", err)
	}
}

func attach(t *testing.T, b *bench) {
	s := b.create()
	req := b.request(s, b.Commands.Cat)
	req.Spec.Stdin = true
	key := b.made(req)
	b.start(key)
	r, w := io.Pipe()
	defer func() { _ = w.Close() }()
	back, out := io.Pipe()
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- b.Engine.Attach(ctx, key, engine.IO{Stdin: r, Stdout: out}) }()
	if _, err := io.WriteString(w, "there and back\n"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len("there and back\n"))
	if _, err := io.ReadFull(back, buf); err != nil || string(buf) != "there and back\n" {
		t.Fatalf("read %q, %v", buf, err)
	}
	go func() { _, _ = io.Copy(io.Discard, back) }()
	b.must("kill", b.Engine.SignalContainer(b.ctx, key, engine.Signal{Name: "SIGKILL"}))
	select {
	case err := <-ended:
		b.must("attach to a container that ended", err)
	case <-b.ctx.Done():
		t.Fatal("attach goes on after the container ended")
	}
}

func attachCancel(t *testing.T, b *bench) {
	s := b.create()
	key := b.running(s, b.Commands.Sleep)
	ctx, cancel := context.WithCancel(b.ctx)
	ended := make(chan error, 1)
	go func() { ended <- b.Engine.Attach(ctx, key, engine.IO{Stdout: io.Discard}) }()
	cancel()
	select {
	case err := <-ended:
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v; want nil or the context's error", err)
		}
	case <-b.ctx.Done():
		t.Fatal("attach goes on after its context ended")
	}
}
