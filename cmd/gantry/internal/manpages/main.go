// Command manpages writes a man page for gantry and for each of its commands into a directory. They bear
// the date SOURCE_DATE_EPOCH, if that is set.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra/doc"

	"gantry/cmd/gantry/internal/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "manpages DIRECTORY")
		os.Exit(2)
	}
	root := cli.Command()
	root.DisableAutoGenTag = true
	header := doc.GenManHeader{Section: "1", Source: "gantry", Manual: "gantry"}
	if err := doc.GenManTree(root, &header, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "manpages:", err)
		os.Exit(1)
	}
}
