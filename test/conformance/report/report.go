// Package report reads what critest says about a run, in JUnit's form, and what the documentation says
// about specs that don't pass.
package report

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
)

// Outcome of a spec.
type Outcome string

// The outcomes.
const (
	Passed  Outcome = "passed"
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped"
)

// Spec is one spec of a run.
type Spec struct {
	Name    string
	Outcome Outcome
	Reason  string // critest's own, on one line; "" when it passed
	Took    time.Duration
}

type junit struct {
	Suites []struct {
		Cases []testCase `xml:"testcase"`
	} `xml:"testsuite"`
}

type testCase struct {
	Name    string   `xml:"name,attr"`
	Status  string   `xml:"status,attr"`
	Seconds float64  `xml:"time,attr"`
	Failure *message `xml:"failure"`
	Error   *message `xml:"error"`
	Skipped *message `xml:"skipped"`
}

type message struct {
	Text string `xml:"message,attr"`
}

// Parse reads a JUnit report of ginkgo. Specs that were not selected are left out.
func Parse(r io.Reader) ([]Spec, error) {
	var report junit
	if err := xml.NewDecoder(r).Decode(&report); err != nil {
		return nil, fmt.Errorf("read JUnit report: %w", err)
	}
	var all []Spec
	for _, suite := range report.Suites {
		for _, c := range suite.Cases {
			if s, ok := c.spec(); ok {
				all = append(all, s)
			}
		}
	}
	return all, nil
}

// spec converts a test case; it says no for one that was not selected: ginkgo reports it as skipped
// and gives no reason. Set-up of the suite counts when it fails only.
func (c testCase) spec() (Spec, bool) {
	name, isSpec := strings.CutPrefix(c.Name, "[It] ")
	s := Spec{Name: strings.TrimPrefix(name, "[k8s.io] "), Outcome: Passed, Took: time.Duration(c.Seconds * float64(time.Second))}
	switch {
	case c.Failure != nil:
		s.Outcome, s.Reason = Failed, oneLine(c.Failure.Text)
	case c.Error != nil:
		s.Outcome, s.Reason = Failed, oneLine(c.Error.Text)
	case !isSpec:
		return Spec{}, false
	case c.Skipped != nil:
		reason, selected := strings.CutPrefix(c.Skipped.Text, "skipped - ")
		s.Outcome, s.Reason = Skipped, oneLine(reason)
		return s, selected
	}
	return s, true
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// Cause is why a spec does not pass, as the documentation has it.
type Cause struct {
	Spec    string // the end of the spec's name
	Outcome Outcome
	Text    string
}

// row is a line of the documentation's table: | `the spec` | failed | why |
var row = regexp.MustCompile("^\\| *`([^`]+)` *\\| *(failed|skipped) *\\| *(.+?) *\\|$")

// Causes reads the table of the documentation.
func Causes(r io.Reader) ([]Cause, error) {
	var all []Cause
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if m := row.FindStringSubmatch(lines.Text()); m != nil {
			all = append(all, Cause{Spec: m[1], Outcome: Outcome(m[2]), Text: m[3]})
		}
	}
	return all, lines.Err()
}

// Explain finds the cause of s's outcome; "" when nothing is written about it.
func Explain(causes []Cause, s Spec) string {
	for _, c := range causes {
		if c.Outcome == s.Outcome && strings.HasSuffix(s.Name, c.Spec) {
			return c.Text
		}
	}
	return ""
}

// Count is how many specs of a run have each outcome.
func Count(specs []Spec) map[Outcome]int {
	n := make(map[Outcome]int)
	for _, s := range specs {
		n[s.Outcome]++
	}
	return n
}

// Write prints a line a spec, those that did not pass last and with their causes, and the counts. It
// returns the names of the specs that did not pass and whose cause is not documented.
func Write(w io.Writer, specs []Spec, causes []Cause) (unexplained []string) {
	for _, outcome := range []Outcome{Passed, Skipped, Failed} {
		for _, s := range specs {
			if s.Outcome != outcome {
				continue
			}
			fmt.Fprintf(w, "%-7s %6.1fs  %s\n", s.Outcome, s.Took.Seconds(), s.Name)
			if outcome == Passed {
				continue
			}
			fmt.Fprintf(w, "                 critest: %s\n", s.Reason)
			cause := Explain(causes, s)
			if cause == "" {
				cause = "not documented"
				unexplained = append(unexplained, s.Name)
			}
			fmt.Fprintf(w, "                 cause: %s\n", cause)
		}
	}
	n := Count(specs)
	fmt.Fprintf(w, "\n%d specs: %d passed, %d failed, %d skipped\n", len(specs), n[Passed], n[Failed], n[Skipped])
	return unexplained
}
