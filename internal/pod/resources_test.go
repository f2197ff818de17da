package pod_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"gantry/internal/pod"
)

func TestResourcesWith(t *testing.T) {
	full := pod.Resources{
		CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 512, MemoryLimit: 1 << 20, MemorySwapLimit: -1, OOMScoreAdj: 100,
		CPUSetCPUs: "0-1", CPUSetMems: "0", HugepageLimits: []pod.HugepageLimit{{PageSize: "2MB", Limit: 1}},
		Unified: map[string]string{"memory.high": "10"},
	}
	for _, c := range []struct {
		rule   string
		update pod.Resources
		want   func(*pod.Resources)
	}{
		{"what is zero stays", pod.Resources{}, func(*pod.Resources) {}},
		{"CPUs alone leave the rest", pod.Resources{CPUSetCPUs: "1"}, func(r *pod.Resources) { r.CPUSetCPUs = "1" }},
		{"a quota may be lifted", pod.Resources{CPUQuota: -1}, func(r *pod.Resources) { r.CPUQuota = -1 }},
		{"page sizes are merged by size", pod.Resources{HugepageLimits: []pod.HugepageLimit{{PageSize: "1GB", Limit: 2}}},
			func(r *pod.Resources) {
				r.HugepageLimits = []pod.HugepageLimit{{PageSize: "1GB", Limit: 2}, {PageSize: "2MB", Limit: 1}}
			}},
		{"unified settings are merged by file", pod.Resources{Unified: map[string]string{"memory.low": "5"}},
			func(r *pod.Resources) { r.Unified = map[string]string{"memory.high": "10", "memory.low": "5"} }},
	} {
		t.Run(c.rule, func(t *testing.T) {
			want := full
			c.want(&want)
			if d := cmp.Diff(want, full.With(&c.update)); d != "" {
				t.Error(d)
			}
			if len(full.Unified) != 1 || len(full.HugepageLimits) != 1 {
				t.Error("the old resources were changed")
			}
		})
	}
}

func TestSwapBound(t *testing.T) {
	swapMax := func(value string) map[string]string { return map[string]string{pod.MemorySwapMax: value} }
	for rule, tt := range map[string]struct {
		asked pod.Resources
		want  int64
		file  bool
	}{
		"nothing says nothing":                   {pod.Resources{}, 0, false},
		"a memory limit alone leaves no swap":    {pod.Resources{MemoryLimit: 100}, 100, false},
		"its own limit":                          {pod.Resources{MemoryLimit: 100, MemorySwapLimit: 150}, 150, false},
		"unlimited":                              {pod.Resources{MemoryLimit: 100, MemorySwapLimit: -1}, -1, false},
		"the kubelet's NoSwap on v2":             {pod.Resources{MemoryLimit: 100, Unified: swapMax("0")}, 100, true},
		"the kubelet's LimitedSwap on v2":        {pod.Resources{MemoryLimit: 100, Unified: swapMax("30")}, 130, true},
		"the file wins":                          {pod.Resources{MemoryLimit: 100, MemorySwapLimit: 150, Unified: swapMax("30")}, 130, true},
		"no limit in the file":                   {pod.Resources{MemoryLimit: 100, Unified: swapMax("max")}, -1, true},
		"the file can't be said without a limit": {pod.Resources{Unified: swapMax("30")}, 0, false},
		"what is no number is the kernel's":      {pod.Resources{MemoryLimit: 100, Unified: swapMax("x")}, 100, false},
		"what is too large for the sum":          {pod.Resources{MemoryLimit: 100, Unified: swapMax("9223372036854775807")}, 100, false},
	} {
		if got, file := tt.asked.SwapBound(); got != tt.want || file != tt.file {
			t.Errorf("%s: %d, %t; want %d, %t", rule, got, file, tt.want, tt.file)
		}
	}
}

func TestPairedWith(t *testing.T) {
	unified := func(pairs ...string) map[string]string {
		all := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			all[pairs[i]] = pairs[i+1]
		}
		return all
	}
	is := pod.Resources{MemoryLimit: 100, Unified: unified(pod.MemorySwapMax, "30")}
	for rule, tt := range map[string]struct{ update, want pod.Resources }{
		"CPUs alone stay alone":         {pod.Resources{CPUQuota: 5}, pod.Resources{CPUQuota: 5}},
		"memory takes its swap along":   {pod.Resources{MemoryLimit: 200}, pod.Resources{MemoryLimit: 200, Unified: unified(pod.MemorySwapMax, "30")}},
		"swap takes its memory along":   {pod.Resources{Unified: unified(pod.MemorySwapMax, "0")}, pod.Resources{MemoryLimit: 100, Unified: unified(pod.MemorySwapMax, "0")}},
		"both are both":                 {pod.Resources{MemoryLimit: 200, Unified: unified(pod.MemorySwapMax, "0")}, pod.Resources{MemoryLimit: 200, Unified: unified(pod.MemorySwapMax, "0")}},
		"another way of saying is said": {pod.Resources{MemoryLimit: 200, MemorySwapLimit: 300}, pod.Resources{MemoryLimit: 200, MemorySwapLimit: 300}},
		"other files stay": {
			pod.Resources{MemoryLimit: 200, Unified: unified("memory.high", "9")},
			pod.Resources{MemoryLimit: 200, Unified: unified("memory.high", "9", pod.MemorySwapMax, "30")},
		},
	} {
		if d := cmp.Diff(tt.want, tt.update.PairedWith(&is)); d != "" {
			t.Errorf("%s: %s", rule, d)
		}
	}
	none := pod.Resources{MemoryLimit: 200}
	if d := cmp.Diff(none, none.PairedWith(&pod.Resources{MemoryLimit: 100})); d != "" {
		t.Errorf("where nothing was said of swap: %s", d)
	}
}
