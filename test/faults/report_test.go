package faults_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// report is the table of outcomes: a line a call and point, a column a victim.
type report struct {
	name   string
	order  []string
	rows   map[string][]string
	totals map[string]int
	failed int
}

func newReport(name string) *report {
	return &report{name: name, rows: map[string][]string{}, totals: map[string]int{}}
}

func (r *report) add(f *fault, failed bool, outcome string) {
	row := fmt.Sprintf("%-34s %-48s", f.call.name, f.point)
	if r.rows[row] == nil {
		r.order = append(r.order, row)
	}
	if failed {
		outcome = "FAILED"
		r.failed++
	}
	r.rows[row] = append(r.rows[row], strings.TrimSpace(f.victim+" "+f.when)+": "+outcome)
	r.totals[outcome]++
}

func (r *report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s\n", r.name)
	total := 0
	for _, row := range r.order {
		fmt.Fprintf(&b, "%s %s\n", row, strings.Join(r.rows[row], "; "))
	}
	for outcome, n := range r.totals {
		total += n
		fmt.Fprintf(&b, "%5d %s\n", n, outcome)
	}
	fmt.Fprintf(&b, "%5d cases, %d failed\n", total, r.failed)
	return b.String()
}

// print shows the table, and leaves it where GANTRY_FAULTS_REPORT says.
func (r *report) print(t *testing.T) {
	t.Helper()
	t.Log(r.String())
	dir := os.Getenv("GANTRY_FAULTS_REPORT")
	if dir == "" {
		return
	}
	if err := os.WriteFile(filepath.Join(dir, r.name+".txt"), []byte(r.String()), 0o600); err != nil {
		t.Error(err)
	}
}
