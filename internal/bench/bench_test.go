package bench_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry/internal/bench"
)

func TestRowsAreMediansInTheOrderOfTheirFirstSample(t *testing.T) {
	r := bench.NewResults()
	s := r.Scope("life", "gantry")
	for _, ms := range []int{40, 10, 30, 20} {
		s.Took("Run", time.Duration(ms)*time.Millisecond)
	}
	s.Add("CPU", "ms", 7)
	rows := r.Rows()
	if len(rows) != 2 || rows[0].Metric != "Run" || rows[1].Metric != "CPU" {
		t.Fatalf("rows %v", rows)
	}
	got := rows[0]
	if got.N != 4 || got.Unit != "ms" || got.Median != 25 || got.Low != 13 || got.High != 37 {
		t.Errorf("of 10, 20, 30 and 40 ms: %+v", got)
	}
	if one := rows[1]; one.Median != 7 || one.Low != 7 || one.High != 7 {
		t.Errorf("of one sample: %+v", one)
	}
}

func sample() bench.Report {
	r := bench.NewResults()
	r.Scope("a pod's life", "gantry").Add("Run<Pod>", "ms", 20)
	r.Scope("a pod's life", "other").Add("Run<Pod>", "ms", 80)
	r.Scope("a pod's life", "other").Add("Only", "ms", 1)
	r.Scope("limits", bench.Limit).Add("fork", "ms", 0.5)
	r.Note("Left out: what hung.")
	return bench.Report{Rows: r.Rows(), Notes: r.Notes(), Took: "1m0s"}
}

func TestReportComparesAndDraws(t *testing.T) {
	r := sample()
	files, err := r.Files()
	if err != nil {
		t.Fatal(err)
	}
	text := string(files["README.md"])
	for _, want := range []string{
		"\nLeft out: what hung.\n", "## A pod's life", "| Run<Pod> | ms | **20.0** | **80.0**<br>×0.25 |", "| Only | ms | – | **1.00** |", "![a pod's life](plot-01.svg)",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if len(files["results.json"]) == 0 {
		t.Error("no JSON")
	}
	if _, drawn := files["plot-02.svg"]; drawn {
		t.Error("a plot of one runtime alone")
	}
	for d := xml.NewDecoder(bytes.NewReader(files["plot-01.svg"])); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("plot: %v", err)
		}
	}
}

func TestTableHasAColumnForEachRuntime(t *testing.T) {
	r := sample()
	var out bytes.Buffer
	if err := bench.Table(&out, r.Rows); err != nil {
		t.Fatal(err)
	}
	want := `A POD'S LIFE  UNIT  GANTRY  OTHER
Run<Pod>      ms    20.0    80.0
Only          ms    -       1.00

LIMITS  UNIT  LIMIT
fork    ms    0.50

`
	if out.String() != want {
		t.Errorf("table:\n%s", out.String())
	}
}

func TestCPUTimeOfACgroup(t *testing.T) {
	for _, c := range []struct{ name, file, content string }{
		{"version 2 counts microseconds", "pods/cpu.stat", "usage_usec 1500\nuser_usec 1000\n"},
		{"version 1 counts nanoseconds", "cpuacct/pods/cpuacct.usage", "1500000\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			path := filepath.Join(root, c.file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(c.content), 0o600)); err != nil {
				t.Fatal(err)
			}
			g, err := bench.OpenCgroup(root, "pods")
			if err != nil {
				t.Fatal(err)
			}
			if used, err := g.CPU(); err != nil || used != 1500*time.Microsecond {
				t.Errorf("used %v, %v", used, err)
			}
		})
	}
	if _, err := bench.OpenCgroup(t.TempDir(), "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a cgroup that is not there: %v", err)
	}
}
