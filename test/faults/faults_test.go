// Package faults ends the server, the keeper's worker, both, OCI runtimes and CNI plugins at every
// point of every call that changes something, repeats the call, uses the pod, removes it, and wants
// the machine as it was before.
package faults_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	keeper "gantry/internal/keeper/worker"
	"gantry/internal/lab"
	"gantry/internal/lifecycle"
)

func TestMain(m *testing.M) { lab.Main(m) }

// share is one of how many cases is tried: all of them, or a few that `make test` has time for.
var share = flag.Int("share", number("GANTRY_FAULTS_SHARE", 20), "try one case of so many")

// part, "K/N", is the K-th of N parts of a matrix, so that several processes can share it; "" is all.
var part = flag.String("part", os.Getenv("GANTRY_FAULTS_PART"), "try only this part, K/N")

// inTurn says whether the i-th of many is of the part that was asked for.
func inTurn(t *testing.T, i int) bool {
	if *part == "" {
		return true
	}
	var k, n int
	if _, err := fmt.Sscanf(*part, "%d/%d", &k, &n); err != nil || k < 1 || k > n {
		t.Fatalf("part %q is not K/N", *part)
	}
	return i%n == k-1
}

func number(env string, otherwise int) int {
	if v, err := strconv.Atoi(os.Getenv(env)); err == nil {
		return v
	}
	return otherwise
}

// What is killed at a point: the process whose point it is, the other one, or both.
const (
	itself = "itself"
	server = "server"
	worker = "worker"
	both   = "both"
)

// fault is one case: what is killed in a call, and when.
type fault struct {
	call   *call
	point  point
	victim string
	when   string // for programs; empty for points of the server and the worker
}

func (f *fault) name() string {
	return strings.Join([]string{f.call.name, f.point.String(), strings.TrimSpace(f.victim + " " + f.when)}, ": ")
}

func TestMatrix(t *testing.T) {
	for _, network := range []string{"builtin", "cni"} {
		t.Run(network, func(t *testing.T) { matrix(t, network) })
	}
}

func matrix(t *testing.T, network string) {
	w := newWorld(t, network)
	var all []*fault
	reached := map[string]bool{}
	for _, c := range calls() {
		t.Run("learn "+c.name, func(t *testing.T) {
			points := w.learn(t, c)
			for _, p := range points {
				reached[p.process+" "+p.name] = true
				all = append(all, c.faults(p)...)
			}
		})
		all = append(all, w.programFaults(c)...)
	}
	if ociRuntime == "crun" {
		everyPointIsReached(t, reached)
	}
	report := newReport(network)
	for i, f := range all {
		if i%*share != 0 || !inTurn(t, i) {
			continue
		}
		t.Run(f.name(), func(t *testing.T) {
			defer func() { report.add(f, t.Failed(), w.outcome) }()
			w.try(t, f)
		})
	}
	report.print(t)
}

// faults are the cases of one point that the call reached.
func (c *call) faults(p point) []*fault {
	victims := []string{itself, both}
	if p.process == worker {
		victims = append(victims, server)
	}
	var all []*fault
	for _, v := range victims {
		all = append(all, &fault{call: c, point: p, victim: v})
	}
	return all
}

// everyPointIsReached makes sure that a step added to the product is one of the matrix: some call
// must reach every point that lifecycle and the worker list.
func everyPointIsReached(t *testing.T, reached map[string]bool) {
	var missing []string
	for _, p := range lifecycle.Points() {
		if !reached["server "+p.String()] {
			missing = append(missing, "server "+p.String())
		}
	}
	for _, p := range keeper.Points() {
		if !reached["worker "+string(p)] {
			missing = append(missing, "worker "+string(p))
		}
	}
	slices.Sort(missing)
	for _, m := range missing {
		t.Errorf("no call reaches the point %q", m)
	}
}
