package report_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"gantry/test/conformance/report"
)

func TestBenchmarks(t *testing.T) {
	const data = `{"operationsNames":["PullImage","RemoveImage"],"numParallel":1,"datapoints":[
{"sampleIndex":0,"operationsDurationsNs":[3000000,10]},{"sampleIndex":1,"operationsDurationsNs":[1000000,30]},
{"sampleIndex":2,"operationsDurationsNs":[2000000,20]}]}`
	got, err := report.Benchmarks(strings.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	want := []report.Benchmark{
		{Operation: "PullImage", Samples: 3, Median: 2 * time.Millisecond, P95: 3 * time.Millisecond, Longest: 3 * time.Millisecond},
		{Operation: "RemoveImage", Samples: 3, Median: 20, P95: 30, Longest: 30},
	}
	if !slices.Equal(got, want) {
		t.Errorf("Benchmarks = %+v\nwant         %+v", got, want)
	}
	for name, data := range map[string]string{
		"half a file": data[:60], "operations without samples": `{"operationsNames":["PullImage"],"datapoints":[]}`,
	} {
		if got, err := report.Benchmarks(strings.NewReader(data)); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
