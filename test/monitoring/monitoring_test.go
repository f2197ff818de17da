package monitoring_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"gopkg.in/yaml.v3"
)

const top = "../.."

// alert is a rule as Prometheus reads it.
type alert struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func alerts(t *testing.T) []alert {
	t.Helper()
	dec := yaml.NewDecoder(strings.NewReader(read(t, "packaging/monitoring/alerts.yaml")))
	dec.KnownFields(true)
	var file struct {
		Groups []struct {
			Name  string  `yaml:"name"`
			Rules []alert `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := dec.Decode(&file); err != nil {
		t.Fatal(err)
	}
	var all []alert
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("no alerts")
	}
	return all
}

func TestAlertsNameMetricsThatExist(t *testing.T) {
	known := documented(t)
	troubleshooting := read(t, "docs/troubleshooting.md")
	for _, a := range alerts(t) {
		t.Run(a.Alert, func(t *testing.T) {
			checkQuery(t, known, a.Expr)
			if a.Labels["severity"] == "" || a.Annotations["summary"] == "" {
				t.Error("has no severity or no summary")
			}
			if !strings.Contains(troubleshooting, a.Alert) {
				t.Error("docs/troubleshooting.md does not say what to do about it")
			}
		})
	}
}

func TestDashboardNamesMetricsThatExist(t *testing.T) {
	known := documented(t)
	var board struct {
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Name, Query string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "packaging/monitoring/dashboard.json")), &board); err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, p := range board.Panels {
		t.Run(p.Title, func(t *testing.T) {
			if seen[p.ID] || len(p.Targets) == 0 {
				t.Errorf("panel %d is there twice, or asks for nothing", p.ID)
			}
			seen[p.ID] = true
			for _, target := range p.Targets {
				checkQuery(t, known, target.Expr)
			}
		})
	}
	for _, v := range board.Templating.List {
		if name, ok := strings.CutPrefix(v.Query, "label_values("); ok {
			checkQuery(t, known, strings.Split(name, ",")[0])
		}
	}
	if len(board.Panels) == 0 {
		t.Error("no panels")
	}
}

// variables are Grafana's own that stand where PromQL wants a duration.
var variables = strings.NewReplacer("$__rate_interval", "5m")

// checkQuery parses a query, and looks for its metrics among those that are known.
func checkQuery(t *testing.T, known map[string]bool, query string) {
	t.Helper()
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(variables.Replace(query))
	if err != nil {
		t.Errorf("%s: %v", query, err)
		return
	}
	parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
		selector, ok := n.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		if !known[selector.Name] {
			t.Errorf("%s: there is no metric %s", query, selector.Name)
		}
		for _, m := range selector.LabelMatchers {
			if m.Name != labels.MetricName && !hasLabel(known, selector.Name, m.Name) {
				t.Errorf("%s: %s has no label %s", query, selector.Name, m.Name)
			}
		}
		return nil
	})
}

// hasLabel says whether a metric has a label: one of its own, or one that Prometheus gives to all.
func hasLabel(known map[string]bool, metric, label string) bool {
	return label == "job" || label == "instance" || known[metric+"{"+label+"}"]
}

// row is a metric in the table of docs/metrics.md.
var row = regexp.MustCompile(`(?m)^\| (gantry_\w+) \| ([^|]*) \|`)

// documented are the metrics of docs/metrics.md, which a test of the server keeps true, and those that
// Prometheus and its client give to every process. "name{label}" is there for each label.
func documented(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{}
	for _, name := range []string{
		"up", "process_start_time_seconds", "process_open_fds", "process_max_fds", "process_cpu_seconds_total",
		"process_resident_memory_bytes", "go_goroutines",
	} {
		known[name] = true
	}
	for _, m := range row.FindAllStringSubmatch(read(t, "docs/metrics.md"), -1) {
		names := []string{m[1]}
		if strings.HasSuffix(m[1], "_duration_seconds") { // those are histograms
			names = []string{m[1] + "_bucket", m[1] + "_count", m[1] + "_sum"}
			known[m[1]+"_bucket{le}"] = true
		}
		for _, name := range names {
			known[name] = true
			for label := range strings.SplitSeq(m[2], ", ") {
				known[name+"{"+label+"}"] = true
			}
		}
	}
	if len(known) < 20 {
		t.Fatalf("docs/metrics.md names too few metrics: %v", known)
	}
	return known
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(top, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
