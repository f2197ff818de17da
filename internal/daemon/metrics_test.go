package daemon_test

import (
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"gantry/internal/daemon"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const metricsDoc = "../../docs/metrics.md"

const metricsHead = `# Metrics

What ` + "`/metrics`" + ` has at the address ` + "`metrics.listen`" + `, beside ` + "`go_*` and `process_*`" + ` of the Prometheus client. Nothing is
measured in the background: pods, pulls and the keeper are looked at when somebody asks. What containers use is
no matter of this page: the kubelet gets that over the CRI.

| metric | labels | |
|---|---|---|
`

// described keeps the descriptions of what is registered, also of what has no value yet.
type described struct {
	prometheus.Registerer
	descs []string
}

func (d *described) Register(c prometheus.Collector) error {
	ch := make(chan *prometheus.Desc)
	go func() {
		c.Describe(ch)
		close(ch)
	}()
	for one := range ch {
		d.descs = append(d.descs, one.String())
	}
	return nil
}

// descForm is what Desc.String writes.
var descForm = regexp.MustCompile(`fqName: "([^"]+)", help: "([^"]*)".*, constLabels: \{\}, variableLabels: \{([^}]*)\}`)

func TestEveryMetricIsDocumented(t *testing.T) {
	all := &described{}
	if err := daemon.RegisterAll(all); err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, text := range all.descs {
		m := descForm.FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no description: %s", text)
		}
		rows[m[1]] = fmt.Sprintf("| %s | %s | %s |\n", m[1], strings.ReplaceAll(m[3], ",", ", "), m[2])
	}
	names := slices.Sorted(maps.Keys(rows))
	if written := namesInSource(t); !slices.Equal(written, names) {
		t.Errorf("metrics that the source names: %v\nmetrics that are registered: %v", written, names)
	}
	var doc strings.Builder
	doc.WriteString(metricsHead)
	for _, name := range names {
		doc.WriteString(rows[name])
	}
	if *update {
		if err := os.WriteFile(metricsDoc, []byte(doc.String()), 0o644); err != nil { //nolint:gosec // a document
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(metricsDoc); err != nil || string(want) != doc.String() {
		t.Errorf("%s is not what is registered (%v); run this test with -update", metricsDoc, err)
	}
}

// namesInSource finds metrics that RegisterAll may have forgotten.
func namesInSource(t *testing.T) []string {
	t.Helper()
	name := regexp.MustCompile(`"(gantry_[a-z_]+)"`)
	found := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range name.FindAllStringSubmatch(string(text), -1) {
			found[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(found))
}
