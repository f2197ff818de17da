package cgroup2_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"gantry/test/conformance/report"
	"gantry/test/conformance/standin"
	"gantry/test/node"
)

// focus are critest's specs of what this machine has and others have not, or differently: containers and
// their limits, user namespaces, AppArmor.
const focus = `\[k8s.io\] (AppArmor|Container OOM|Container runtime|Container Mount|Multiple Containers|Idempotence|Security Context (UserNamespaces|NamespaceOption))`

// TestCritest passes when all of these specs run and pass. critest's own time-outs are for faster machines.
func TestCritest(t *testing.T) {
	for _, s := range twice {
		t.Run(s.String(), func(t *testing.T) {
			n := s.serve(t)
			images, err := standin.Serve(standin.Programs{Busybox: node.Tool(t, "busybox"), NoNewPrivs: node.Tool(t, "nonewprivs")}, "/etc/gantry/certs.d", "")
			if err != nil {
				t.Fatal(err)
			}
			defer images.Close()
			junit := filepath.Join(t.TempDir(), "junit.xml")
			cmd := exec.CommandContext(context.WithoutCancel(t.Context()), node.Tool(t, "critest"), "-runtime-endpoint", n.Endpoint(),
				"-runtime-service-timeout", "10m", "-image-service-timeout", "10m",
				"-ginkgo.focus", focus, "-ginkgo.skip", "benchmark", "-ginkgo.timeout", "2h", "-ginkgo.junit-report", junit, "-ginkgo.no-color")
			out, ran := cmd.CombinedOutput()
			f, err := os.Open(junit)
			if err != nil {
				t.Fatalf("critest: %v\n%s", ran, out)
			}
			defer f.Close()
			specs, err := report.Parse(f)
			if err != nil || len(specs) < 40 {
				t.Fatalf("%d specs ran: %v, %v\n%s", len(specs), ran, err, out)
			}
			for _, name := range report.Write(os.Stdout, specs, nil) {
				t.Errorf("does not pass: %s", name)
			}
			if t.Failed() {
				_, _ = io.WriteString(os.Stdout, tail(string(out), 20000))
			}
		})
	}
}

// tail is the end of text, of at most n bytes.
func tail(text string, n int) string { return text[max(0, len(text)-n):] }
