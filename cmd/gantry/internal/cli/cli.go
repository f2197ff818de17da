// Package cli is the gantry command: flags, output and exit codes.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"gantry/cmd/gantry/internal/client"
	"gantry/internal/config"
)

// Exit codes. `exec` and `run --wait` end with the code of the process instead.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// Stdio are the streams of the process.
type Stdio struct {
	In  *os.File
	Out *os.File
	Err *os.File
}

// Main runs the command line and returns the exit code.
func Main(ctx context.Context, args []string, std Stdio) int {
	a := &app{std: std, out: std.Out, err: std.Err}
	root := a.root() //nolint:contextcheck // the commands get theirs when they run
	root.SetArgs(args)
	root.SetIn(std.In)
	root.SetOut(std.Out)
	root.SetErr(std.Err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var code exitCode
	if errors.As(err, &code) {
		return int(code)
	}
	fmt.Fprintln(std.Err, "gantry:", client.Message(err))
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(std.Err, "See '%s --help'.\n", usage.command)
		return exitUsage
	}
	return exitFailure
}

// Command is the whole command line, for those who describe it.
func Command() *cobra.Command { return (&app{}).root() }

// exitCode ends the command with a process's code and says nothing more.
type exitCode int

func (e exitCode) Error() string { return "exit code " + strconv.Itoa(int(e)) }

// usageError is a command line that means nothing.
type usageError struct {
	command string
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// app is what the commands share.
type app struct {
	std      Stdio
	out      io.Writer
	err      io.Writer
	endpoint string
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "gantry",
		Short:         "A Kubernetes container runtime: the server and its command line",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       config.Version,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SuggestionsMinimumDistance = 2
	root.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		err := fmt.Errorf("there is no command %q", args[0])
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			err = fmt.Errorf("%w; is %q meant?", err, near[0])
		}
		return err
	}
	endpoint := os.Getenv("GANTRY_ENDPOINT")
	if endpoint == "" {
		endpoint = client.DefaultEndpoint
	}
	root.PersistentFlags().StringVar(&a.endpoint, "endpoint", endpoint, "`SOCKET` of the server (environment: GANTRY_ENDPOINT)")
	root.AddGroup(
		&cobra.Group{ID: "pods", Title: "Pods and containers:"},
		&cobra.Group{ID: "images", Title: "Images:"},
		&cobra.Group{ID: "node", Title: "The node:"},
	)
	a.group(root, "pods", a.runCommand(), a.podsCommand(), a.psCommand(), a.logsCommand(), a.execCommand(), a.attachCommand(),
		a.portForwardCommand(), a.statsCommand(), a.topCommand(), a.eventsCommand(), a.stopCommand(), a.rmCommand(), a.inspectCommand())
	a.group(root, "images", a.pullCommand(), a.imagesCommand(), a.rmiCommand())
	a.group(root, "node", a.serveCommand(), a.configCommand(), a.doctorCommand(), a.pluginsCommand(), a.fsckCommand(), a.migrateCommand(), a.benchCommand(), a.versionCommand())
	tameUsage(root)
	return root
}

func (a *app) group(root *cobra.Command, id string, cmds ...*cobra.Command) {
	for _, c := range cmds {
		c.GroupID = id
		root.AddCommand(c)
	}
}

// tameUsage gives wrong flags and arguments of every command the exit code of a usage error.
func tameUsage(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return &usageError{c.CommandPath(), err} })
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return &usageError{c.CommandPath(), err}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		tameUsage(sub)
	}
}

// with connects to the server for the time of do. What the client libraries would log is in the
// errors they return.
func (a *app) with(ctx context.Context, do func(context.Context, *client.Client) error) error {
	klog.SetLogger(klog.Logger{})
	c, err := client.Connect(ctx, a.endpoint)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(ctx) }()
	return do(ctx, c)
}

// each does something for every argument, goes on after an error, and prints the arguments done.
func (a *app) each(args []string, do func(arg string) error) error {
	var errs []error
	for _, arg := range args {
		if err := do(arg); err != nil {
			errs = append(errs, errors.New(client.Message(err)))
			continue
		}
		fmt.Fprintln(a.out, arg)
	}
	return errors.Join(errs...)
}
