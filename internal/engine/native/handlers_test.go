package native_test

import (
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/ociruntime"
)

func TestRuntimesAreReplacedAsAWhole(t *testing.T) {
	s := newStation(t, "crun")
	before := s.Features(t.Context())
	if err := s.SetRuntimes(map[string]ociruntime.Runtime{"other": {Path: "/none"}}, "crun"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a default that is not there: %v", err)
	}
	if after := s.Features(t.Context()); len(after) != len(before) {
		t.Errorf("a refused change left %v of %v", after, before)
	}
	if err := s.SetRuntimes(map[string]ociruntime.Runtime{"other": {Path: "/none"}}, "other"); err != nil {
		t.Fatal(err)
	}
	if err := s.Status(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("Status with a default runtime that has no binary: %v", err)
	}
}
