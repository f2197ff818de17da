package lifecycle_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gantry/internal/engine/fake"
)

func TestStatusSaysWhatHangs(t *testing.T) {
	for method, want := range map[string]string{
		"CreateSandbox":   `/web: creating, at step "sandbox create" for 7s`,
		"CreateContainer": `main: creating, at step "container create" for 7s`,
		"StartContainer":  `main: created, at step "container start" for 7s`,
	} {
		t.Run(method, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, fake.HangOn(method))
				m := w.start()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() {
					id, err := m.RunPod(ctx, sandbox("web"))
					if err == nil {
						id, err = m.CreateContainer(ctx, id, container("main"))
					}
					if err == nil {
						_ = m.StartContainer(ctx, id)
					}
				}()
				<-time.After(7 * time.Second) // of the bubble's clock
				status, err := m.Status(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				var said []string
				for key, text := range status.Verbose {
					if strings.HasPrefix(key, "pod.") || strings.HasPrefix(key, "container.") {
						said = append(said, text)
					}
				}
				if len(said) != 1 || !strings.HasSuffix(said[0], want) {
					t.Errorf("Status says %q, want %q", said, want)
				}
				w.engine.Faults().Lift(method)
				cancel()
				<-time.After(10 * time.Minute)
			})
		})
	}
}
