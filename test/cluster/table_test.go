package cluster_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// document is where the tables stand that the suite is held to.
const document = "../../docs/cluster.md"

// table returns the rows of the table under a heading of the document, without what is quoted as code.
func table(t testing.TB, heading string) [][]string {
	t.Helper()
	data, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(data), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("%s has no section %q", document, heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var rows [][]string
	for line := range strings.Lines(section) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, "|") {
			continue
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.Trim(strings.TrimSpace(cell), "`"))
		}
		rows = append(rows, cells)
	}
	if len(rows) < 3 { // the first are the head and the line below it
		t.Fatalf("%s: no table under %q", document, heading)
	}
	return rows[2:]
}

// like makes a regular expression of words in which … stands for anything.
func like(words string) *regexp.Regexp {
	parts := strings.Split(words, "…")
	for i, part := range parts {
		parts[i] = regexp.QuoteMeta(part)
	}
	return regexp.MustCompile(strings.Join(parts, ".*"))
}
