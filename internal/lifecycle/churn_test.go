package lifecycle_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine/fake"
	"gantry/internal/lifecycle"
)

// TestChurnLeavesNothing lets impatient clients do anything in any order while calls fail, hang and
// lose their answers, watches break and servers come and go; in the end nothing may be left.
func TestChurnLeavesNothing(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				rnd := rand.New(rand.NewPCG(seed, 1))
				for range 3 {
					m := w.start()
					var wg sync.WaitGroup
					for i := range 6 {
						own := rand.New(rand.NewPCG(seed, rnd.Uint64()))
						wg.Go(func() { churn(t.Context(), m, own, fmt.Sprint("pod-", i)) })
					}
					trouble := rand.New(rand.NewPCG(seed, rnd.Uint64()))
					wg.Go(func() { w.trouble(trouble) })
					wg.Wait()
					w.stop(m)
				}
				m := w.start()
				w.mustAgree(m)
				for _, sb := range m.Pods(t.Context()) {
					if err := m.RemovePod(t.Context(), sb.ID); err != nil {
						t.Errorf("remove pod: %v", err)
					}
				}
				w.mustBeEmpty("after churn")
			})
		})
	}
}

// churn is one client. Its errors are its own: only what is left behind counts.
func churn(ctx context.Context, m *lifecycle.Manager, rnd *rand.Rand, name string) {
	var podID, id string
	words := [][]string{{"sleep"}, {"exit", "3"}, {"ignore", "TERM"}, {"trap", "TERM", "1"}}
	for range 60 {
		call, cancel := context.WithTimeout(ctx, time.Duration(rnd.IntN(5000))*time.Millisecond)
		switch rnd.IntN(9) {
		case 0, 1:
			if got, err := m.RunPod(call, sandbox(name)); err == nil {
				podID = got
			}
		case 2, 3:
			if got, err := m.CreateContainer(call, podID, container("main", words[rnd.IntN(len(words))]...)); err == nil {
				id = got
			}
		case 4:
			_ = m.StartContainer(call, id)
		case 5:
			_ = m.StopContainer(call, id, time.Second)
		case 6:
			_ = m.RemoveContainer(call, id)
		case 7:
			_ = m.StopPod(call, podID)
		case 8:
			_ = m.RemovePod(call, podID)
		}
		cancel()
	}
}

// trouble makes and lifts faults for a while, and leaves none.
func (w *world) trouble(rnd *rand.Rand) {
	methods := []string{
		"CreateSandbox", "StartSandbox", "StopSandbox", "RemoveSandbox", "CreateContainer", "StartContainer",
		"SignalContainer", "RemoveContainer", "List", "Watch",
	}
	faults := []func(string) fake.Option{fake.FailOn, fake.LoseAnswerOf, fake.HangOn}
	for range 40 {
		method := methods[rnd.IntN(len(methods))]
		w.engine.Faults().Add(faults[rnd.IntN(len(faults))](method))
		if rnd.IntN(3) == 0 {
			w.engine.LoseWatches()
		}
		if rnd.IntN(3) == 0 {
			w.net.fail("Detach", errdefs.ErrUnavailable)
		}
		<-time.After(time.Duration(rnd.IntN(3000)) * time.Millisecond) // of the bubble's clock
		w.net.fail("Detach", nil)
		w.engine.Faults().Lift(method)
	}
}
