package ocispec_test

import (
	"encoding/json"
	"testing"

	"gantry/internal/ocispec"
	"gantry/internal/pod"
)

// BenchmarkBuild measures a spec with the default seccomp profile, as the kubelet's pods have it, to
// the bytes of config.json.
func BenchmarkBuild(b *testing.B) {
	r := request()
	r.Container.Security.Seccomp = &pod.Profile{Kind: pod.ProfileRuntimeDefault}
	b.ReportAllocs()
	for b.Loop() {
		s, err := ocispec.Build(r)
		if err != nil {
			b.Fatal(err)
		}
		data, err := json.Marshal(s)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(data)))
	}
}
