package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/client"
)

func (a *app) execCommand() *cobra.Command {
	var stdin, tty bool
	cmd := &cobra.Command{
		Use: "exec [-it] CONTAINER COMMAND [ARG...]", Short: "Run a command in a container", Args: cobra.MinimumNArgs(2),
		Long: "Run a command in a container and end with its exit code. CONTAINER may also be a pod with one container.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				x, err := c.OneContainer(ctx, args[0])
				if err != nil {
					return err
				}
				term, err := a.terminal(stdin, tty)
				if err != nil {
					return err
				}
				code, err := c.Exec(ctx, x.Id, args[1:], term.io)
				term.restore()
				return ended(code, err)
			})
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "with a terminal")
	return cmd
}

func ended(code int, err error) error {
	switch {
	case err != nil:
		return err
	case code != 0:
		return exitCode(code)
	}
	return nil
}

func (a *app) attachCommand() *cobra.Command {
	var stdin bool
	cmd := &cobra.Command{
		Use: "attach [-i] CONTAINER", Short: "Connect to a container's own streams", Args: cobra.ExactArgs(1),
		Long: "Connect to the streams of a container's main process until it ends; then end with its exit code.\nOn a terminal ctrl-p ctrl-q leaves it running.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.attach(ctx, c, args[0], stdin)
			})
		},
	}
	cmd.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input")
	return cmd
}

func (a *app) attach(ctx context.Context, c *client.Client, arg string, stdin bool) error {
	x, err := c.OneContainer(ctx, arg)
	if err != nil {
		return err
	}
	tty, err := c.HasTerminal(ctx, x.Id)
	if err != nil {
		return err
	}
	term, err := a.terminal(stdin, tty)
	if err != nil {
		return err
	}
	defer term.restore()
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	if stdin && tty {
		term.io.Stdin = &detacher{in: term.io.Stdin, leave: func() { leave(errDetached) }}
	}
	err = c.Attach(ctx, x.Id, term.io)
	if errors.Is(context.Cause(ctx), errDetached) {
		return nil
	}
	if err != nil {
		return err
	}
	st, err := c.Runtime.ContainerStatus(ctx, x.Id, false)
	if err != nil {
		return fmt.Errorf("container %s: %w", arg, err)
	}
	if st.Status.GetState() == v1.ContainerState_CONTAINER_EXITED {
		return ended(int(st.Status.ExitCode), nil)
	}
	return nil
}

func (a *app) portForwardCommand() *cobra.Command {
	var addresses []string
	cmd := &cobra.Command{
		Use: "port-forward POD [LOCAL:]REMOTE...", Short: "Forward local ports to a pod", Args: cobra.MinimumNArgs(2),
		Long: "Forward local TCP ports to a pod's until interrupted. \":REMOTE\" takes a free local port.",
		PreRunE: func(cmd *cobra.Command, args []string) error {
			for _, p := range args[1:] {
				if err := checkPorts(p); err != nil {
					return &usageError{cmd.CommandPath(), err}
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				p, err := c.Pod(ctx, args[0])
				if err != nil {
					return err
				}
				return c.PortForward(ctx, p.Id, client.Forward{Addresses: addresses, Ports: args[1:], Out: a.out, Err: a.err})
			})
		},
	}
	cmd.Flags().StringSliceVar(&addresses, "address", []string{"localhost"}, "local `ADDRESS` to listen on")
	return cmd
}

func checkPorts(s string) error {
	local, remote, two := strings.Cut(s, ":")
	if !two {
		local, remote = s, s
	}
	if n, err := strconv.ParseUint(remote, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is not [LOCAL:]REMOTE with ports from 1 to 65535", s)
	}
	if _, err := strconv.ParseUint(local, 10, 16); local != "" && err != nil {
		return fmt.Errorf("%q is not [LOCAL:]REMOTE with ports from 1 to 65535", s)
	}
	return nil
}
