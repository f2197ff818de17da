package ocispec_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/ocispec"
)

func TestContainerWithASandboxOfItsOwnNamesNoOther(t *testing.T) {
	s := &specs.Spec{Annotations: map[string]string{
		"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "a", "io.kubernetes.cri.sandbox-name": "web",
	}}
	ocispec.OwnSandbox(s)
	if got := slices.Collect(maps.Keys(s.Annotations)); !slices.Equal(got, []string{"io.kubernetes.cri.sandbox-name"}) {
		t.Errorf("annotations are %v", got)
	}
}
