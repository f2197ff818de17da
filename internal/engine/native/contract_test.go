package native_test

import (
	"testing"

	"gantry/internal/engine/enginetest"
	"gantry/internal/pod"
)

func TestContract(t *testing.T) {
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			s := newStation(t, runtime)
			enginetest.Run(t, func(*testing.T) enginetest.Harness {
				return enginetest.Harness{
					Engine: s, Image: s.image, Commands: enginetest.Shell(),
					Sandbox: func(spec *pod.SandboxSpec) { spec.CgroupParent = s.parent },
				}
			})
			if left := s.leftovers(t); len(left) > 0 {
				t.Errorf("left behind %v", left)
			}
		})
	}
}
