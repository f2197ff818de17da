package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/client"
	"gantry/internal/admin"
)

func (a *app) pullCommand() *cobra.Command {
	var creds string
	cmd := &cobra.Command{
		Use: "pull IMAGE...", Short: "Pull images", Args: cobra.MinimumNArgs(1),
		Long: "Pull images by tag or digest and print their ids. On a terminal every layer has a progress bar, where\nthe server's state directory is at hand.",
		RunE: func(cmd *cobra.Command, args []string) error {
			auth, err := parseCreds(creds)
			if err != nil {
				return &usageError{cmd.CommandPath(), err}
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				for _, ref := range args {
					if err := a.pull(ctx, c, ref, auth); err != nil {
						return err // the server names the image
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&creds, "creds", "", "`USER:PASSWORD` for the registry")
	return cmd
}

func parseCreds(s string) (*v1.AuthConfig, error) {
	if s == "" {
		return nil, nil
	}
	user, password, ok := strings.Cut(s, ":")
	if !ok || user == "" {
		return nil, errors.New("--creds is not USER:PASSWORD")
	}
	return &v1.AuthConfig{Username: user, Password: password}, nil
}

func (a *app) pull(ctx context.Context, c *client.Client, ref string, auth *v1.AuthConfig) error {
	stop := a.showProgress(ctx, ref)
	id, err := c.Images.PullImage(ctx, &v1.ImageSpec{Image: ref}, auth, nil)
	stop()
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, id)
	return nil
}

// refresh is how often the bars are drawn.
const refresh = 100 * time.Millisecond

// showProgress draws bars on standard error while a pull runs, where that is a terminal and the
// server's admin socket lies beside its CRI socket. The returned function ends it.
func (a *app) showProgress(ctx context.Context, ref string) (stop func()) {
	if !term.IsTerminal(int(a.std.Err.Fd())) {
		return func() {}
	}
	socket := a.adminSocket()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		asks := admin.NewClient(socket)
		defer asks.Close()
		b := &bars{w: a.std.Err, width: func() int { return terminalWidth(a.std.Err) }}
		for {
			if pulls, err := asks.Pulls(ctx); err == nil {
				b.draw(layersOf(pulls, ref))
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(refresh):
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

func layersOf(pulls []admin.Pull, ref string) []admin.Layer {
	for _, p := range pulls {
		if p.Ref == ref {
			return p.Layers
		}
	}
	return nil
}

func terminalWidth(f *os.File) int {
	w, _, err := term.GetSize(int(f.Fd()))
	if err != nil || w < 40 {
		return 80
	}
	return w
}

// bars draws one line a layer, over the lines it drew before.
type bars struct {
	w     io.Writer
	width func() int
	last  []admin.Layer
}

// draw draws what is known now. A pull that has just ended is known no more: its bars stay.
func (b *bars) draw(layers []admin.Layer) {
	if len(layers) < len(b.last) || len(layers) == 0 {
		return
	}
	var out strings.Builder
	if n := len(b.last); n > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", n) // cursor up
	}
	for _, l := range layers {
		out.WriteString("\r\x1b[K" + bar(l, b.width()) + "\n") // clear the line
	}
	b.last = layers
	_, _ = io.WriteString(b.w, out.String())
}

// bar is "a3ed95caeb02  [=====>    ]  12MB/30MB", at most width characters.
func bar(l admin.Layer, width int) string {
	head := client.Short(l.Digest)
	if l.Total <= 0 {
		return fmt.Sprintf("%s  %s", head, size(uint64(max(l.Done, 0))))
	}
	done := min(max(l.Done, 0), l.Total)
	tail := size(uint64(done)) + "/" + size(uint64(l.Total))
	room := max(width-len(head)-len("  []  ")-len("999.9MB/999.9MB")-1, 10)
	full := int(int64(room) * done / l.Total)
	line := strings.Repeat("=", full)
	if full < room {
		line += ">" + strings.Repeat(" ", room-full-1)
	}
	return fmt.Sprintf("%s  [%s]  %s", head, line, tail)
}
