package fake_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/engine/enginetest"
	"gantry/internal/engine/fake"
	"gantry/internal/pod"
)

func commands() enginetest.Commands {
	return enginetest.Commands{
		Exit:   func(code string) []string { return []string{"exit", code} },
		Sleep:  []string{"sleep"},
		Trap:   func(sig, code string) []string { return []string{"trap", sig, code} },
		Ignore: func(sig string) []string { return []string{"ignore", sig} },
		Echo:   func(out, err string) []string { return []string{"echo", out, err} },
		Cat:    []string{"cat"},
	}
}

func TestContract(t *testing.T) {
	enginetest.Run(t, func(t *testing.T) enginetest.Harness {
		e := fake.New()
		t.Cleanup(func() {
			if left := e.Everything(); len(left) > 0 {
				t.Errorf("left behind %v", left)
			}
		})
		return enginetest.Harness{Engine: e, Image: &pod.Image{ID: "sha256:1"}, Commands: commands()}
	})
}

func TestImagesContract(t *testing.T) {
	enginetest.RunImages(t, func(*testing.T) enginetest.ImagesHarness {
		return enginetest.ImagesHarness{Images: fake.NewImages("localhost/a:1", "localhost/b:1"), Refs: [2]string{"localhost/a:1", "localhost/b:1"}, Absent: "localhost/none:1"}
	})
}

func TestFaults(t *testing.T) {
	ctx := t.Context()
	spec := &pod.SandboxSpec{Key: "k"}
	broken := fake.New(fake.FailOn("CreateSandbox"))
	if _, err := broken.CreateSandbox(ctx, spec, engine.Files{}); !errors.Is(err, fake.ErrFault) || len(broken.Everything()) != 0 {
		t.Errorf("FailOn: %v, left %v", err, broken.Everything())
	}
	broken.Faults().Lift("CreateSandbox")
	if _, err := broken.CreateSandbox(ctx, spec, engine.Files{}); err != nil {
		t.Errorf("after Lift: %v", err)
	}
	lost := fake.New(fake.LoseAnswerOf("CreateSandbox"))
	if _, err := lost.CreateSandbox(ctx, spec, engine.Files{}); !errors.Is(err, fake.ErrFault) || len(lost.Everything()) != 1 {
		t.Errorf("LoseAnswerOf: %v, left %v; want an error and a sandbox", err, lost.Everything())
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := fake.New(fake.HangOn("CreateSandbox")).CreateSandbox(ended, spec, engine.Files{}); !errors.Is(err, context.Canceled) {
		t.Errorf("HangOn: %v; want the context's error", err)
	}
	unavailable := fake.New()
	unavailable.Faults().Fail("Status", errdefs.ErrUnavailable)
	if err := unavailable.Status(ctx); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "Status") {
		t.Errorf("Fail: %v", err)
	}
}

func TestLostWatchClosesTheChannel(t *testing.T) {
	e := fake.New()
	events, err := e.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e.LoseWatches()
	if _, ok := <-events; ok {
		t.Error("an event came from a lost watch")
	}
}
