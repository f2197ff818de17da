package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/client"
	"gantry/internal/admin"
	"gantry/internal/config"
	"gantry/internal/doctor"
)

func (a *app) doctorCommand() *cobra.Command {
	var (
		flags      *config.Flags
		registries []string
		output     string
	)
	cmd := &cobra.Command{
		Use: "doctor", Short: "Say what is wrong with this machine and how to mend it", Args: cobra.NoArgs,
		Long: "Check kernel, cgroups, file systems, runtimes, network, registries and the server, as it is configured.\nEnds with 1 when a check failed; warnings do not.",
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return &usageError{cmd.CommandPath(), fmt.Errorf("--output: %q is not text or json", output)}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := flags.Load(finder())
			if err != nil {
				return err
			}
			if !cmd.Flags().Changed("endpoint") && a.endpoint == client.DefaultEndpoint {
				a.endpoint = o.Listen
			}
			all := doctor.Run(cmd.Context(), doctor.Options{Config: o, Registries: registries, Server: a.askServer})
			if output == "json" {
				err = printJSON(a.out, all)
			} else {
				err = printFindings(a.out, all)
			}
			if err == nil && doctor.Worst(all) == doctor.Fail {
				err = exitCode(exitFailure)
			}
			return err
		},
	}
	flags = config.AddFlags(cmd.Flags())
	cmd.Flags().StringArrayVar(&registries, "registry", nil, "`HOST` of a registry that must answer; may be repeated")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func printFindings(w io.Writer, all []doctor.Finding) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range all {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", f.Level, f.Check, f.Message)
		if f.Mend != "" {
			fmt.Fprintf(tw, "\t\tmend: %s\n", f.Mend)
		}
	}
	return tw.Flush()
}

// askServer asks the running server for its version and its conditions.
func (a *app) askServer(ctx context.Context) (*doctor.Server, error) {
	var s doctor.Server
	err := a.with(ctx, func(ctx context.Context, c *client.Client) error {
		v, err := c.Runtime.Version(ctx, "v1")
		if err != nil {
			return err
		}
		s.Version = v.RuntimeName + " " + v.RuntimeVersion
		st, err := c.Runtime.Status(ctx, false)
		if err != nil {
			return err
		}
		s.Runtime = condition(st.Status, v1.RuntimeReady)
		s.Network = condition(st.Status, v1.NetworkReady)
		return nil
	})
	if err != nil {
		return nil, errors.New(client.Message(err))
	}
	err = a.asking(func(c *admin.Client) error {
		s.Plugins, err = c.Plugins(ctx)
		return err
	})
	if err != nil { // an older server, or one of another user's: the rest is still worth telling
		s.Plugins = nil
	}
	return &s, nil
}

func condition(st *v1.RuntimeStatus, kind string) error {
	for _, c := range st.GetConditions() {
		if c.Type == kind && !c.Status {
			return fmt.Errorf("%s: %s", c.Reason, c.Message)
		}
	}
	return nil
}
