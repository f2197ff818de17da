package faults_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	keeper "gantry/internal/keeper/worker"
	"gantry/internal/killpoint"
	"gantry/internal/lifecycle"
)

// A point of recovery is killed at so many times in a row, and after so many different wounds.
const (
	killsInARow     = 3
	woundsPerPoint  = 3
	recoveringLabel = "recovering from "
)

// TestKillsInRecovery kills who recovers. A process is ended at a point of a call, and its successor
// at a point of its recovery, again and again; the one that comes through in the end loses nothing.
func TestKillsInRecovery(t *testing.T) {
	w := newWorld(t, "builtin")
	tried, reached := map[string]int{}, map[string]bool{}
	report := newReport("recovery")
	n, cases := 0, 0
	for _, c := range calls() {
		var wounds []point
		t.Run("learn "+c.name, func(t *testing.T) { wounds = w.learn(t, c) })
		for _, wound := range wounds {
			if n++; n%*share != 0 || !inTurn(t, n) {
				continue
			}
			t.Run(recoveringLabel+c.name+" "+wound.String(), func(t *testing.T) {
				for _, p := range w.learnRecovery(t, c, wound) {
					reached[p.process+" "+p.name] = true
					if tried[p.String()]++; tried[p.String()] > woundsPerPoint {
						continue
					}
					if cases++; *share > 1 && cases%10 != 0 {
						continue
					}
					t.Run(p.String(), func(t *testing.T) {
						f := &fault{call: &call{name: recoveringLabel + c.name}, point: p, victim: itself}
						defer func() { report.add(f, t.Failed(), w.outcome) }()
						w.tryRecovery(t, c, wound, p)
					})
				}
			})
		}
	}
	report.print(t)
	if *share == 1 && *part == "" {
		everyRecoveryPointIsReached(t, reached)
	}
}

// learnRecovery returns what the successor of a process that ended at a point of the call reaches
// until it serves.
func (w *world) learnRecovery(t *testing.T, c *call, at point) (points []point) {
	w.reset(t)
	defer w.recover(t)
	if at.process == worker { // its successor begins at once
		w.startTrace()
	}
	w.wound(c, at)
	if at.process == server {
		w.startTrace()
	}
	w.comesBack(at)
	for _, p := range w.readTrace(filepath.Join(w.dir, killpoint.TraceFile)) {
		if at.process == server || strings.HasPrefix(p.name, "recover/") {
			points = append(points, p)
		}
	}
	w.disarm()
	w.heal(c)
	return points
}

// tryRecovery is one case.
func (w *world) tryRecovery(t *testing.T, c *call, at, p point) {
	w.reset(t)
	defer w.recover(t)
	again := killpoint.Armed{Process: p.process, Point: p.name, Count: p.count}
	w.wound(c, at, slices.Repeat([]killpoint.Armed{again}, killsInARow)...)
	w.comesBack(at)
	w.disarm()
	w.outcome = "recovered"
	w.heal(c)
}

func (w *world) startTrace() {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, killpoint.TraceFile), nil, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// wound makes the call and has its process end at the point; then those that follow are armed.
func (w *world) wound(c *call, at point, next ...killpoint.Armed) {
	w.t.Helper()
	c.adjust(w)
	c.prepare(w)
	w.played = c.restores
	_, before := w.n.Keeper()
	if err := killpoint.Arm(w.dir, killpoint.Armed{Process: at.process, Point: at.name, Count: at.count}, next...); err != nil {
		w.t.Fatal(err)
	}
	_ = c.do(w)
	w.n.Eventually("the process has ended", func() bool {
		if at.process == server {
			return !w.n.Runs()
		}
		_, now := w.n.Keeper()
		return now != before
	})
}

// comesBack starts the server, if it was ended, until it answers, and waits for a worker that serves.
func (w *world) comesBack(at point) {
	w.t.Helper()
	if at.process == server {
		w.n.Kill() // it has ended: this only waits
		for tries := 0; !w.n.Starts(); tries++ {
			if tries > killsInARow {
				w.t.Fatalf("the server ended %d times in its recovery, %d were armed", tries, killsInARow)
			}
		}
	}
	w.n.Eventually("the keeper answers", func() bool {
		r, err := w.n.Runtime.Status(w.n.Context(), &runtimeapi.StatusRequest{})
		return err == nil && r.Status.Conditions[0].Status
	})
}

// heal repeats the call, uses the pod, removes everything, and compares.
func (w *world) heal(c *call) {
	w.t.Helper()
	c.expect(w, c.do(w))
	w.finish(c)
}

// everyRecoveryPointIsReached makes sure that what is added to recovery is tried.
func everyRecoveryPointIsReached(t *testing.T, reached map[string]bool) {
	t.Helper()
	for _, p := range lifecycle.RecoveryPoints() {
		if !reached["server "+p.String()] {
			t.Errorf("no recovery reaches the point %q of the server", p)
		}
	}
	for _, p := range keeper.RecoveryPoints() {
		if !reached["worker "+string(p)] {
			t.Errorf("no recovery reaches the point %q of the worker", p)
		}
	}
}
