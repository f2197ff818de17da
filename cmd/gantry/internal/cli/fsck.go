package cli

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gantry/internal/cgroup"
	"gantry/internal/config"
	"gantry/internal/fsck"
)

// podLogs is where the kubelet has the pods' logs.
const podLogs = "/var/log/pods"

func (a *app) fsckCommand() *cobra.Command {
	var (
		flags  *config.Flags
		repair bool
		alone  bool
		output string
		age    time.Duration
		logs   []string
	)
	cmd := &cobra.Command{
		Use: "fsck", Short: "Find what is left on this machine of pods and images that are gone", Args: cobra.NoArgs,
		Long: "List mounts, network namespaces, leases, cgroups, writable layers, files, image layers and log directories that\n" +
			"no record of the server names; --repair removes them. A running server goes on. The exit code is 1 if\n" +
			"anything is left. Whether images themselves are whole, gantry images verify says.",
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return &usageError{cmd.CommandPath(), fmt.Errorf("--output: %q is not text or json", output)}
			}
			return nil
		},
		RunE: func(*cobra.Command, []string) error {
			o, err := flags.Load(finder())
			if err != nil {
				return err
			}
			all, err := fsck.Run(fsck.Options{
				Root: o.Root, State: o.State, NetNSDir: o.Network.NetNSDir, Cgroups: cgroup.DefaultRoot,
				LogDirs: logs, Repair: repair, Age: age, Alone: alone,
			})
			if err != nil {
				return err
			}
			if output == "json" {
				err = printJSON(a.out, append([]fsck.Orphan{}, all...))
			} else {
				err = printOrphans(a.out, all)
			}
			if err != nil {
				return err
			}
			for _, x := range all {
				if !x.Removed {
					return exitCode(exitFailure)
				}
			}
			return nil
		},
	}
	flags = config.AddFlags(cmd.Flags())
	cmd.Flags().BoolVar(&repair, "repair", false, "remove what is found")
	cmd.Flags().BoolVar(&alone, "alone", false, "no other gantry is on this machine: also cgroups and network namespaces that no file of this server names")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	cmd.Flags().DurationVar(&age, "age", time.Hour, "how long logs and layers must not have changed")
	cmd.Flags().StringArrayVar(&logs, "logs", []string{podLogs}, "`DIR` with a directory of logs a pod; may be repeated")
	return cmd
}

func printOrphans(w io.Writer, all []fsck.Orphan) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, x := range all {
		state := "left"
		switch {
		case x.Removed:
			state = "removed"
		case x.Error != "":
			state = "left: " + x.Error
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", x.Kind, x.Was, x.Path, state)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if len(all) == 0 {
		fmt.Fprintln(w, "nothing is left of what is gone")
	}
	return nil
}
