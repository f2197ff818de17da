package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"gantry/cmd/gantry/internal/client"
	"gantry/internal/config"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the versions of this program and of the server", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(a.out, "client   %s\n", config.Version)
			err := a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				v, err := c.Runtime.Version(ctx, "v1")
				if err != nil {
					return fmt.Errorf("version: %w", err)
				}
				fmt.Fprintf(a.out, "server   %s %s, CRI %s\n", v.RuntimeName, v.RuntimeVersion, v.RuntimeApiVersion)
				return nil
			})
			if err != nil {
				fmt.Fprintf(a.out, "server   %s\n", client.Message(err))
			}
			return nil
		},
	}
}

func (a *app) configCommand() *cobra.Command {
	var flags *config.Flags
	cmd := &cobra.Command{
		Use: "config", Short: "Print the configuration that serve would use", Args: cobra.NoArgs,
		Long: "Print the effective configuration as TOML: defaults, file, flags, and what was found on this machine.\nIt may be saved and used as " + config.DefaultFile + ".",
		RunE: func(*cobra.Command, []string) error {
			o, err := flags.Load(finder())
			if err != nil {
				return err
			}
			text, err := o.TOML()
			if err != nil {
				return err
			}
			_, err = a.out.Write(text)
			return err
		},
	}
	flags = config.AddFlags(cmd.Flags())
	return cmd
}
