package cli

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/client"
	"gantry/cmd/gantry/internal/logs"
)

func (a *app) logsCommand() *cobra.Command {
	var (
		o      logs.Options
		follow bool
		since  time.Duration
	)
	cmd := &cobra.Command{
		Use: "logs [-f] CONTAINER", Short: "Print a container's log", Args: cobra.ExactArgs(1),
		Long: "Print a container's log: what it wrote to standard output goes there, the rest to standard error.\nCONTAINER may also be a pod with one container.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				x, err := c.OneContainer(ctx, args[0])
				if err != nil {
					return err
				}
				resp, err := c.Runtime.ContainerStatus(ctx, x.Id, false)
				if err != nil {
					return fmt.Errorf("container %s: %w", args[0], err)
				}
				if resp.Status.GetLogPath() == "" {
					return fmt.Errorf("container %s keeps no log", args[0])
				}
				if since > 0 {
					o.Since = time.Now().Add(-since)
				}
				if follow {
					var stop func()
					o.Ended, stop = watchEnd(ctx, c, x.Id)
					defer stop()
				}
				return logs.Read(ctx, resp.Status.LogPath, o, a.out, a.err)
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the container ends")
	cmd.Flags().IntVar(&o.Tail, "tail", -1, "only the last `LINES`")
	cmd.Flags().BoolVarP(&o.Timestamps, "timestamps", "t", false, "with the time of every line")
	cmd.Flags().DurationVar(&since, "since", 0, "only lines younger than `DURATION`")
	return cmd
}

// Polling of a container's state: often at first, because short containers are what people wait for.
const (
	pollFirst = 20 * time.Millisecond
	pollMost  = 500 * time.Millisecond
)

// waitEnd waits until a container no longer runs. A server that restarts meanwhile is waited for;
// one that is gone for good ends the wait by ctx only.
func waitEnd(ctx context.Context, c *client.Client, id string) (*v1.ContainerStatus, error) {
	pause := pollFirst
	for {
		resp, err := c.Runtime.ContainerStatus(ctx, id, false)
		switch {
		case err == nil && resp.Status.GetState() == v1.ContainerState_CONTAINER_EXITED:
			return resp.Status, nil
		case err != nil && status.Code(err) != codes.Unavailable:
			return nil, fmt.Errorf("wait for container %s: %w", client.Short(id), cmp.Or(ctx.Err(), err))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, pollMost)
	}
}

// watchEnd returns a channel that is closed when the container no longer runs or is gone.
func watchEnd(ctx context.Context, c *client.Client, id string) (ended <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ch := make(chan struct{})
	go func() {
		defer close(ch)
		_, _ = waitEnd(ctx, c, id)
	}()
	return ch, func() {
		cancel()
		<-ch
	}
}

// prefixer writes whole lines with a prefix. Several may share mu and w.
type prefixer struct {
	mu     *sync.Mutex
	w      io.Writer
	prefix string
	line   []byte
}

func (p *prefixer) Write(b []byte) (int, error) {
	p.line = append(p.line, b...)
	for {
		line, rest, ok := bytes.Cut(p.line, []byte{'\n'})
		if !ok {
			return len(b), nil
		}
		if err := p.write(line); err != nil {
			return 0, err
		}
		p.line = rest
	}
}

// flush writes what has no newline.
func (p *prefixer) flush() error {
	if len(p.line) == 0 {
		return nil
	}
	line := p.line
	p.line = nil
	return p.write(line)
}

func (p *prefixer) write(line []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := fmt.Fprintf(p.w, "%s%s\n", p.prefix, line)
	return err
}
