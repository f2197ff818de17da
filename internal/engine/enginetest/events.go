package enginetest

import (
	"context"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

func exitCodes(t *testing.T, b *bench) {
	events := b.watch()
	s := b.create()
	for code, want := range map[string]int32{"0": 0, "1": 1, "7": 7, "255": 255} {
		key := b.running(s, b.Commands.Exit(code))
		got := b.exit(events, key)
		if got.Code != want || got.Unknown || got.OOMKilled || got.At.IsZero() {
			t.Errorf("exit %s was reported as %+v", code, got)
		}
		if info := b.find(key); info == nil || info.Exit == nil || info.Exit.Code != want {
			t.Errorf("List shows %+v; want exit code %d", info, want)
		}
	}
}

func unwatchedExit(t *testing.T, b *bench) {
	s := b.create()
	key := b.running(s, b.Commands.Sleep)
	if info := b.find(key); info == nil || info.State != pod.ContainerRunning {
		t.Fatalf("List shows %+v; want it running", info)
	}
	b.must("kill", b.Engine.SignalContainer(b.ctx, key, engine.Signal{Name: "KILL"}))
	if got := b.exit(b.watch(), key); got.Code != 137 {
		t.Errorf("ended with %+v; want 137", got)
	}
}

func twoWatchers(t *testing.T, b *bench) {
	one, two := b.watch(), b.watch()
	s := b.create()
	key := b.running(s, b.Commands.Exit("5"))
	if x, y := b.exit(one, key), b.exit(two, key); x.Code != 5 || y.Code != 5 {
		t.Errorf("told %+v and %+v; want 5 both times", x, y)
	}
}

func watchEnds(t *testing.T, b *bench) {
	ctx, cancel := context.WithCancel(b.ctx)
	events, err := b.Engine.Watch(ctx)
	b.must("watch", err)
	cancel()
	for {
		select {
		case _, ok := <-events:
			if !ok {
				return
			}
		case <-b.ctx.Done():
			t.Fatal("the channel is open after the context ended")
		}
	}
}

// ready is a reader of a container's first output, which the shell's programs give once they have
// set their traps. An engine whose programs print nothing is ready when StartContainer returned.
func (b *bench) ready(s *sandbox, command []string) pod.Key {
	b.t.Helper()
	req := b.request(s, command)
	key := b.made(req)
	if !strings.Contains(strings.Join(command, " "), "echo ready") {
		b.start(key)
		return key
	}
	out := make(chan struct{})
	w := &notifier{seen: out}
	ctx, cancel := context.WithCancel(b.ctx)
	b.t.Cleanup(cancel)
	attached := make(chan error, 1)
	go func() { attached <- b.Engine.Attach(ctx, key, engine.IO{Stdout: w}) }()
	b.start(key)
	b.waitReady(req.Spec.LogPath, out)
	return key
}

func signals(t *testing.T, b *bench) {
	events := b.watch()
	s := b.create()
	for rule, c := range map[string]struct {
		command []string
		signal  engine.Signal
		want    int32
	}{
		"a trap runs":                          {b.Commands.Trap("TERM", "3"), engine.Signal{Name: "SIGTERM"}, 3},
		"a name without SIG is the same":       {b.Commands.Trap("USR1", "4"), engine.Signal{Name: "USR1"}, 4},
		"a number is the same":                 {b.Commands.Trap("TERM", "6"), engine.Signal{Name: "15"}, 6},
		"KILL cannot be ignored":               {b.Commands.Ignore("TERM"), engine.Signal{Name: "SIGKILL"}, 137},
		"All reaches the main process as well": {b.Commands.Sleep, engine.Signal{Name: "SIGKILL", All: true}, 137},
	} {
		key := b.ready(s, c.command)
		b.must(rule, b.Engine.SignalContainer(b.ctx, key, c.signal))
		if got := b.exit(events, key); got.Code != c.want {
			t.Errorf("%s: ended with %d; want %d", rule, got.Code, c.want)
		}
	}
	key := b.ready(s, b.Commands.Ignore("TERM"))
	b.must("signal", b.Engine.SignalContainer(b.ctx, key, engine.Signal{Name: "SIGTERM"}))
	if info := b.find(key); info == nil || info.State != pod.ContainerRunning {
		t.Errorf("List shows %+v; want it to run on, ignoring SIGTERM", info)
	}
}

func lateSignals(_ *testing.T, b *bench) {
	events := b.watch()
	s := b.create()
	key := b.running(s, b.Commands.Exit("0"))
	b.exit(events, key)
	for _, all := range []bool{false, true} {
		b.must("signal what has ended", b.Engine.SignalContainer(b.ctx, key, engine.Signal{Name: "SIGKILL", All: all}))
	}
}

func badSignal(t *testing.T, b *bench) {
	s := b.create()
	key := b.running(s, b.Commands.Sleep)
	err := b.Engine.SignalContainer(b.ctx, key, engine.Signal{Name: "SIGNOSUCH"})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v; want ErrInvalidArgument", err)
	}
}
