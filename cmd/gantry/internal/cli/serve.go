package cli

import (
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"gantry/internal/config"
	"gantry/internal/daemon" //nolint:depguard // this is cmd/, which may assemble
)

func (a *app) serveCommand() *cobra.Command {
	var flags *config.Flags
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the CRI server", Args: cobra.NoArgs,
		Long: "Run the CRI server until SIGTERM or SIGINT. Its end touches no container: the next server finds them all.\n" +
			"SIGHUP makes it read its configuration again: the log level and the runtimes change at once.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			load := func() (*config.Options, error) { return flags.Load(finder()) }
			return daemon.Run(cmd.Context(), load, a.std.Err)
		},
	}
	flags = config.AddFlags(cmd.Flags())
	return cmd
}

// finder looks on PATH and beside this binary.
func finder() config.Finder {
	f := config.Finder{LookPath: exec.LookPath}
	if self, err := os.Executable(); err == nil {
		f.SelfDir = filepath.Dir(self)
	}
	return f
}
