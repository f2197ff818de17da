package cli_test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gantry/cmd/gantry/internal/cli"
)

// invocation is a command line of gantry in a document: in a block, or in backquotes.
var invocation = regexp.MustCompile("(?m)(?:^ +(?:bin/)?|`(?:bin/)?|&& )gantry ([a-z][^`\n|>;&#]*)")

// TestDocumentedCommandsExist reads every command line of gantry in the documents as the program does.
func TestDocumentedCommandsExist(t *testing.T) {
	pages, err := filepath.Glob("../../../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("documents: %v, %v", pages, err)
	}
	seen := 0
	for _, page := range append(pages, "../../../../README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range invocation.FindAllStringSubmatch(string(text), -1) {
			seen++
			if err := understands(strings.Fields(m[1])); err != nil {
				t.Errorf("%s: gantry %s: %v", filepath.Base(page), strings.TrimSpace(m[1]), err)
			}
		}
	}
	if seen < 30 {
		t.Errorf("only %d command lines were found", seen)
	}
}

// understands says whether there is such a command with such flags and so many arguments.
func understands(args []string) error {
	root := cli.Command()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	if cmd == root {
		return errors.New("there is no such command")
	}
	return cmd.ParseFlags(rest)
}
