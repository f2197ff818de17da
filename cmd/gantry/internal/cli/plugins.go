package cli

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"gantry/internal/admin"
	"gantry/internal/nri"
)

func (a *app) pluginsCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "plugins", Short: "List NRI plugins", Args: cobra.NoArgs,
		Long: "List the NRI plugins that are connected, in the order in which they are asked, and those that were lost\nsince the server has started, with the reason.",
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return &usageError{cmd.CommandPath(), fmt.Errorf("--output: %q is not text or json", output)}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.asking(func(c *admin.Client) error {
				all, err := c.Plugins(cmd.Context())
				if err != nil {
					return err
				}
				if output == "json" {
					return printJSON(a.out, all)
				}
				return a.printPlugins(all)
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func (a *app) printPlugins(all []nri.Plugin) error {
	tw := tabwriter.NewWriter(a.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(tw, "PLUGIN\tSTATE\tSINCE\tCALLS\tFAILED\tREASON")
	for _, p := range all {
		state, since := "connected", p.Since
		if !p.Lost.IsZero() {
			state, since = "gone", p.Lost
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%d\t%s\n", p.Name, state, age(since.UnixNano()), p.Calls, p.Failures, p.Reason)
	}
	return tw.Flush()
}
