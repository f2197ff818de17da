package observe_test

import (
	"testing"
	"time"

	"gantry/internal/admin"
	"gantry/internal/observe"
)

func TestPullsUnderWayAreMetrics(t *testing.T) {
	reg := observe.NewRegistry()
	pull := admin.Pull{Ref: "busybox", Started: time.Now(), Layers: []admin.Layer{{Digest: "sha256:1", Done: 3, Total: 9}}}
	running := []admin.Pull{pull, pull}
	if err := observe.WatchPulls(func() []admin.Pull { return running }, reg); err != nil {
		t.Fatal(err)
	}
	gather := func() map[string]float64 {
		t.Helper()
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		values := make(map[string]float64)
		for _, f := range families {
			for _, m := range f.GetMetric() {
				values[f.GetName()] += m.GetGauge().GetValue()
			}
		}
		return values
	}
	if v := gather(); v["gantry_image_pull_layer_bytes"] != 3 || v["gantry_image_pull_layer_size_bytes"] != 9 {
		t.Errorf("%v", v)
	}
	running = nil
	if v, ok := gather()["gantry_image_pull_layer_bytes"]; ok {
		t.Errorf("an ended pull still counts %v", v)
	}
}
