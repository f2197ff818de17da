package conformance_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gantry/test/conformance/report"
	"gantry/test/node"
)

// samples of each of critest's benchmarks of images, one after the other.
const samples = 50

// TestImageBenchmarks runs critest's benchmarks of images and prints what they measured. It passes when
// they pass; how long something may take is nothing that a test can say of every machine.
func TestImageBenchmarks(t *testing.T) {
	r := fromEnvironment(t)
	base := filepath.Join(r.out, r.name()+"-images")
	if err := os.MkdirAll(base, 0o755); err != nil {
		t.Fatal(err)
	}
	n := r.start(t, base)
	params := filepath.Join(base, "parameters.yaml")
	text := fmt.Sprintf("imagesNumber: %d\nimagesNumberParallel: 1\n", samples)
	if err := os.WriteFile(params, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append(r.arguments(n, base+".xml"), "-benchmark", "-ginkgo.skip", "PodSandbox|Container",
		"-benchmarking-params-file", params, "-benchmarking-output-dir", base)
	ran := critest(t.Context(), base+".log", node.Tool(t, "critest"), args)

	specs := read(t, base+".xml", report.Parse)
	for _, name := range report.Write(os.Stdout, specs, nil) {
		t.Errorf("does not pass: %s", name)
	}
	if len(specs) == 0 || ran != nil {
		t.Fatalf("%d benchmarks ran: %v", len(specs), ran)
	}
	for _, name := range []string{"image_lifecycle_benchmark_data.json", "image_listing_benchmark_data.json"} {
		measured := read(t, filepath.Join(base, name), report.Benchmarks)
		if len(measured) == 0 {
			t.Errorf("%s holds nothing", name)
		}
		for _, b := range measured {
			fmt.Printf("%-12s %3d samples  median %8s  95%% %8s  longest %8s\n", b.Operation, b.Samples,
				b.Median.Round(time.Microsecond), b.P95.Round(time.Microsecond), b.Longest.Round(time.Microsecond))
			if b.Samples != samples {
				t.Errorf("%s: %d of %d samples", b.Operation, b.Samples, samples)
			}
		}
	}
}
