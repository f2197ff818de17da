package bench_test

import (
	"strings"
	"testing"

	"gantry/internal/bench"
)

func TestGoalsAreJudgedByWhatWasMeasured(t *testing.T) {
	r := bench.NewResults()
	alone := bench.LifeCase("builtin", 1)
	r.Scope(alone, "gantry").Add("Run+Create+Start", "ms", 30)
	r.Scope(bench.LifeCase("cni", 1), "containerd 2.4.2").Add("Run+Create+Start", "ms", 160)
	r.Scope(bench.LifeCase("cni", 1), "CRI-O 1.34.0").Add("Run+Create+Start", "ms", 80)
	r.Scope(bench.LifeCase("builtin", 8), "gantry").Add("pods a second", "1/s", 30)
	r.Scope(bench.LifeCase("cni", 8), "containerd 2.4.2").Add("pods a second", "1/s", 6)
	r.Scope(alone, "gantry").Add("CPU of a life", "ms", 50)
	r.Scope("100 pods", "gantry").Add("idle CPU", "%", 0.01)
	r.Scope(bench.BigPull, "gantry").Add(bench.PullTime, "s", 3)
	r.Scope(bench.BigPull, "gantry on Docker 2").Add(bench.PullTime, "s", 1)
	r.Scope(bench.BigPull, "Debian's containerd 1.6.20").Add(bench.PullTime, "s", 1)
	limits := r.Scope(bench.LimitCase, bench.Limit)
	for name, ms := range map[string]float64{
		bench.LimitCreate: 16, bench.LimitNamespace: 1, bench.LimitVeth: 1, bench.LimitOverlay: 2,
		bench.LimitCreate + bench.CPUTime: 15, bench.LimitExec + bench.CPUTime: 5,
	} {
		limits.Add(name, "ms", ms)
	}
	goals := bench.Judge(r.Rows(), 2)
	md, err := (&bench.Report{Goals: goals}).Files()
	if err != nil {
		t.Fatal(err)
	}
	for rule, want := range map[string]string{
		"one of two bounds is reached": "| Run+Create+Start, a pod's life, builtin network | ms | **30.0** |" +
			" ≤ 40.0 (0.25 × 160 of containerd 2.4.2)<br>≤ 28.0 (0.35 × 80.0 of CRI-O 1.34.0) | yes<br>**no** | 20.0: " +
			"network namespace: make and pin + veth pair into it + overlay: mount and unmount + crun create, its program on a read-only mount |",
		"more is better":                          "| **30.0** | ≥ 24.0 (4 × 6.00 of containerd 2.4.2) | yes | 100: 2 CPUs with nothing to do but crun create, its program on a read-only mount, its CPU time + ",
		"the bound itself is reached":             "| CPU of a life, a pod's life, builtin network | ms | **50.0** | ≤ 50.0 | yes | 20.0: ",
		"nothing needs to run":                    "| idle CPU, 100 pods | % | **0.010** | ≤ 0.10 | yes | 0: nothing needs to run |",
		"neither peer nor limit was measured":     "| " + bench.PullTime + ", " + bench.BigPull + " | s | **3.00** | – | – | – |",
		"goals stand before what was measured":    "\n## Goals\n\n| figure |",
		"a peer's name may go on, gantry's is it": "builtin network | ms | **30.0** |",
	} {
		if !strings.Contains(string(md["README.md"]), want) {
			t.Errorf("%s: no %q in\n%s", rule, want, md["README.md"])
		}
	}
	if len(goals) != 5 {
		t.Errorf("%d goals of five figures: %v", len(goals), goals)
	}
}
