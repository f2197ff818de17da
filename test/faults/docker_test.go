package faults_test

import (
	"cmp"
	"slices"
	"testing"

	"gantry/internal/labdocker"
)

// dockerCalls are the life of a pod, each call at its simplest: the steps are those of every engine, and
// the matrix of the native one has their variants.
var dockerCalls = []string{
	"RunPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox",
}

// TestDockerMatrix ends the server, alone and with the worker, at each of its points in the life of a pod
// on Docker. What dockerd had been told goes on meanwhile.
func TestDockerMatrix(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			d := labdocker.Start(t, labdocker.Options{Version: v})
			w := newWorld(t, "builtin", "--engine", "docker", "--docker-endpoint", d.Endpoint())
			var all []*fault
			for _, c := range slices.Concat(podCalls(), containerCalls()) {
				if !slices.Contains(dockerCalls, c.name) {
					continue
				}
				t.Run("learn "+c.name, func(t *testing.T) {
					for _, p := range w.learn(t, c) {
						if p.process == server {
							all = append(all, c.faults(p)...)
						}
					}
				})
			}
			// One victim after the other: a share of an even number would try the first alone.
			slices.SortStableFunc(all, func(a, b *fault) int { return cmp.Compare(a.victim, b.victim) })
			report := newReport("docker-" + string(v))
			for i, f := range all {
				if i%*share != 0 || !inTurn(t, i) {
					continue
				}
				t.Run(f.name(), func(t *testing.T) {
					defer func() { report.add(f, t.Failed(), w.outcome) }()
					w.try(t, f)
					if left := d.Docker("ps", "-aq", "--no-trunc"); left != "" {
						t.Errorf("docker is left with %s", left)
					}
				})
			}
			report.print(t)
		})
	}
}
