package ocispec_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/ocispec"
	"gantry/internal/pod"
)

func TestProcessLimit(t *testing.T) {
	number := func(n int64) *int64 { return &n }
	tests := map[string]struct {
		unified map[string]string
		limit   *int64
		rest    map[string]string
	}{
		"none":                        {nil, nil, nil},
		"pids.max is the limit":       {map[string]string{"pids.max": "77"}, number(77), nil},
		"max is no limit":             {map[string]string{"pids.max": "max"}, number(-1), nil},
		"other files are left":        {map[string]string{"pids.max": "5", "memory.high": "1"}, number(5), map[string]string{"memory.high": "1"}},
		"what is odd is the kernel's": {map[string]string{"pids.max": "0"}, nil, map[string]string{"pids.max": "0"}},
	}
	for rule, tt := range tests {
		t.Run(rule, func(t *testing.T) {
			got, err := ocispec.Resources(&pod.Resources{Unified: tt.unified}, &ocispec.Node{CgroupV2: true})
			if err != nil {
				t.Fatal(err)
			}
			want := &specs.LinuxResources{Unified: tt.rest}
			if tt.limit != nil {
				want.Pids = &specs.LinuxPids{Limit: tt.limit}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSystemdsDefaultLimitOfProcessesDoesNotHold(t *testing.T) {
	r := request()
	r.Node.SystemdCgroup = true
	spec, err := ocispec.Build(r)
	if err != nil {
		t.Fatal(err)
	}
	if p := spec.Linux.Resources.Pids; p == nil || *p.Limit != -1 {
		t.Errorf("limit %v, want -1: none", p)
	}
	const property = "org.systemd.property.TasksMax"
	if got := spec.Annotations[property]; got != "uint64 18446744073709551615" {
		t.Errorf("%s %q", property, got)
	}
	r.Container.Resources.Unified = map[string]string{"pids.max": "77"}
	if spec, err = ocispec.Build(r); err != nil {
		t.Fatal(err)
	}
	if got := spec.Annotations[property]; got != "uint64 77" {
		t.Errorf("%s %q", property, got)
	}
}

// TestSwapOfTheKubelet has the file that the kubelet names, and the runtime's own limit say the same: a systemd that makes
// the cgroup is told the second, and writes it again whenever it is reloaded.
func TestSwapOfTheKubelet(t *testing.T) {
	unified := map[string]string{pod.MemorySwapMax: "4096"}
	got, err := ocispec.Resources(&pod.Resources{MemoryLimit: 1 << 20, Unified: unified}, &ocispec.Node{CgroupV2: true, AccountsSwap: true})
	if err != nil {
		t.Fatal(err)
	}
	limit, swap := int64(1<<20), int64(1<<20+4096)
	want := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &swap}, Unified: unified}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
