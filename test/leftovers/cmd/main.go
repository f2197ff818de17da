// Command leftovers says what a command or a pod left behind on this machine.
//
//	leftovers save FILE [--dir DIR]… [--cgroup PATH]…
//	leftovers check FILE [--dir DIR]… [--cgroup PATH]…
//
// Save writes what is there; check prints, by kind, what is there now and was not then, and exits 1
// if that is anything. The demo and trials by hand use it; tests use the package below it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gantry/test/leftovers"
)

// settle is how long what ends on its own may take to be gone.
const settle = 5 * time.Second

var errLeft = errors.New("something was left behind")

func main() {
	if err := command().ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "leftovers:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var scope leftovers.Scope
	root := &cobra.Command{Use: "leftovers", SilenceUsage: true, SilenceErrors: true}
	root.PersistentFlags().StringArrayVar(&scope.Dirs, "dir", nil, "a file tree that counts")
	root.PersistentFlags().StringArrayVar(&scope.Cgroups, "cgroup", nil, "a cgroup that counts, with those below it")
	root.PersistentFlags().StringArrayVar(&scope.Ignore, "ignore", nil, "a pattern of files that do not count")
	root.AddCommand(
		&cobra.Command{Use: "save FILE", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return save(cmd.Context(), args[0], scope)
		}},
		&cobra.Command{Use: "check FILE", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return check(cmd.Context(), args[0], scope, cmd.OutOrStdout())
		}},
	)
	return root
}

func save(ctx context.Context, file string, scope leftovers.Scope) error {
	now, err := leftovers.Take(ctx, scope)
	if err != nil {
		return err
	}
	data, err := json.Marshal(now)
	if err != nil {
		return fmt.Errorf("encode snapshot: %w", err)
	}
	return os.WriteFile(file, data, 0o600)
}

func check(ctx context.Context, file string, scope leftovers.Scope, out io.Writer) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var before leftovers.Snapshot
	if err = json.Unmarshal(data, &before); err != nil {
		return fmt.Errorf("decode %s: %w", file, err)
	}
	left, err := leftovers.Settle(ctx, scope, before, settle)
	if err != nil {
		return err
	}
	for _, kind := range slices.Sorted(maps.Keys(before)) {
		n := 0
		for _, line := range left {
			if rest, ok := strings.CutPrefix(line, kind+" "); ok {
				fmt.Fprintf(out, "  LEFT %-8s %s\n", kind, rest)
				n++
			}
		}
		if n == 0 {
			fmt.Fprintf(out, "  %-9s nothing left (%d as before)\n", kind, len(before[kind]))
		}
	}
	if len(left) > 0 {
		return errLeft
	}
	return nil
}
