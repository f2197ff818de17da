package report_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"gantry/test/conformance/report"
)

const junit = `<?xml version="1.0" encoding="UTF-8"?>
<testsuites tests="5"><testsuite name="CRI validation">
<testcase name="[BeforeSuite]" status="passed" time="0.1"></testcase>
<testcase name="[It] [k8s.io] Container runtime should start" status="passed" time="1.5"></testcase>
<testcase name="[It] [k8s.io] AppArmor should load" status="skipped" time="0"><skipped message="skipped - AppArmor is disabled on this host"></skipped></testcase>
<testcase name="[It] [k8s.io] PodSandbox benchmark" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[It] [k8s.io] Security should mask" status="failed" time="2"><failure message="Expected&#xA;    x" type="failed">stack</failure></testcase>
<testcase name="[It] [k8s.io] Image should pull" status="panicked" time="0"><error message="boom" type="panicked">stack</error></testcase>
</testsuite></testsuites>`

func TestParse(t *testing.T) {
	specs, err := report.Parse(strings.NewReader(junit))
	if err != nil {
		t.Fatal(err)
	}
	want := []report.Spec{
		{Name: "Container runtime should start", Outcome: report.Passed, Took: 1500 * time.Millisecond},
		{Name: "AppArmor should load", Outcome: report.Skipped, Reason: "AppArmor is disabled on this host"},
		{Name: "Security should mask", Outcome: report.Failed, Reason: "Expected x", Took: 2 * time.Second},
		{Name: "Image should pull", Outcome: report.Failed, Reason: "boom"},
	}
	if !slices.Equal(specs, want) {
		t.Errorf("Parse = %+v\nwant    %+v", specs, want)
	}
}

func TestParseRefusesHalfAReport(t *testing.T) {
	if _, err := report.Parse(strings.NewReader(junit[:200])); err == nil {
		t.Error("a report that ends in the middle was read without an error")
	}
}

func TestWriteNamesWhatNobodyExplains(t *testing.T) {
	specs, err := report.Parse(strings.NewReader(junit))
	if err != nil {
		t.Fatal(err)
	}
	causes, err := report.Causes(strings.NewReader("# Title\n\n| spec | result | cause |\n|---|---|---|\n" +
		"| `AppArmor should load` | skipped | the machine: no AppArmor |\n" +
		"| `Security should mask` | skipped | another result |\n"))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	unexplained := report.Write(&out, specs, causes)
	if want := []string{"Security should mask", "Image should pull"}; !slices.Equal(unexplained, want) {
		t.Errorf("unexplained = %q, want %q", unexplained, want)
	}
	for _, want := range []string{
		"cause: the machine: no AppArmor", "critest: Expected x", "cause: not documented",
		"4 specs: 1 passed, 2 failed, 1 skipped",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
}

func TestDocumentedCausesAreTheMachines(t *testing.T) {
	doc, err := os.Open("../../../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	defer doc.Close()
	causes, err := report.Causes(doc)
	if err != nil || len(causes) == 0 {
		t.Fatalf("%d causes, %v", len(causes), err)
	}
	for _, c := range causes {
		if !strings.HasPrefix(c.Text, "the machine: ") {
			t.Errorf("%s: %s", c.Spec, c.Text)
		}
	}
}
