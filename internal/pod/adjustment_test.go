package pod_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"gantry/internal/pod"
)

func TestFold(t *testing.T) {
	score := int64(0)
	spec := &pod.ContainerSpec{
		Command: []string{"old"}, Args: []string{"arg"}, Env: []pod.Var{{Name: "A", Value: "1"}, {Name: "B", Value: "1"}},
		CDIDevices: []string{"x/y=1"}, Resources: pod.Resources{MemoryLimit: 1, OOMScoreAdj: 9},
	}
	asked := *spec
	a := &pod.Adjustment{
		Args: []string{"new"}, Env: []pod.Var{{Name: "A", Value: "2"}}, RemoveEnv: []string{"A", "B", "IMAGE"}, CDIDevices: []string{"x/y=2"},
		Resources: &pod.Resources{CPUShares: 2, OOMScoreAdj: 5}, OOMScoreAdj: &score, CgroupsPath: "/other",
	}
	got, left := a.Fold(spec)
	want := &pod.ContainerSpec{
		Command: []string{"new"}, Env: []pod.Var{{Name: "A", Value: "2"}},
		CDIDevices: []string{"x/y=1", "x/y=2"}, Resources: pod.Resources{MemoryLimit: 1, CPUShares: 2},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the spec: %s", d)
	}
	// The image may have B, which the client set and nobody does now.
	if d := cmp.Diff(&pod.Adjustment{RemoveEnv: []string{"B", "IMAGE"}, CgroupsPath: "/other"}, left); d != "" {
		t.Errorf("what is left: %s", d)
	}
	if d := cmp.Diff(&asked, spec); d != "" {
		t.Errorf("what was asked for has changed: %s", d)
	}
	if _, left := (&pod.Adjustment{Env: []pod.Var{{Name: "A"}}}).Fold(spec); left != nil {
		t.Errorf("left of a variable: %+v", left)
	}
}
