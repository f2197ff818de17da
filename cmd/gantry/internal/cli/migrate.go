package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"gantry/cmd/gantry/internal/migrate"
	"gantry/internal/admin"
)

func (a *app) migrateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "migrate", Short: "Take over what another runtime has on this node",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.migrateImagesCommand())
	return cmd
}

func (a *app) migrateImagesCommand() *cobra.Command {
	var from, endpoint string
	cmd := &cobra.Command{
		Use: "images --from docker [IMAGE...]", Short: "Copy images into gantry's own store, without a registry",
		Long: "Copy images (all that have a name, if none is given) from Docker's store into gantry's own, with their names and\n" +
			"digests. Every layer is checked. Images that are there already are not copied again: after an interruption,\n" +
			"run the same command once more. Docker keeps its images.",
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if from != "docker" {
				return &usageError{cmd.CommandPath(), fmt.Errorf("--from: %q is not docker", from)}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.asking(func(c *admin.Client) error { return a.migrateImages(cmd.Context(), c, endpoint, args) })
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "where images come from: `docker`")
	cmd.Flags().StringVar(&endpoint, "docker-endpoint", "", "`URL` of Docker's API (default DOCKER_HOST or "+client.DefaultDockerHost+")")
	return cmd
}

func (a *app) migrateImages(ctx context.Context, to *admin.Client, endpoint string, only []string) error {
	opts := []client.Opt{client.FromEnv}
	if endpoint != "" {
		opts = append(opts, client.WithHost(endpoint))
	}
	docker, err := client.New(opts...)
	if err != nil {
		return fmt.Errorf("docker: %w", err)
	}
	defer func() { _ = docker.Close() }()
	show := &migration{out: a.out}
	if term.IsTerminal(int(a.std.Out.Fd())) {
		show.live = a.out
	}
	err = migrate.Images(ctx, docker, to, only, show.image)
	if errors.Is(err, context.Canceled) {
		return errors.New("interrupted: run the same command again to go on")
	}
	return err
}

// migration prints a line an image, and on a terminal how far the present one is.
type migration struct {
	out   io.Writer
	live  io.Writer // nil when out is no terminal
	began time.Time
	shown time.Time
}

// redraw is how often progress is drawn.
const redraw = 200 * time.Millisecond

func (m *migration) image(i migrate.Image) {
	head := fmt.Sprintf("[%d/%d] %s", i.N, i.All, i.Name)
	if i.Sent == 0 && i.Result == "" {
		m.began, m.shown = time.Now(), time.Time{}
	}
	switch {
	case i.Result == "" && m.live != nil && time.Since(m.shown) >= redraw:
		m.shown = time.Now()
		fmt.Fprintf(m.live, "\r\x1b[K%s: %s of about %s", head, size(uint64(i.Sent)), size(uint64(max(i.Size, i.Sent))))
	case i.Result == "":
	default:
		if m.live != nil {
			fmt.Fprint(m.live, "\r\x1b[K")
		}
		fmt.Fprintf(m.out, "%s: %s\n", head, m.result(i))
	}
}

func (m *migration) result(i migrate.Image) string {
	switch i.Result {
	case migrate.Copied:
		return fmt.Sprintf("copied, %s in %v", size(uint64(i.Sent)), time.Since(m.began).Round(10*time.Millisecond))
	case migrate.There:
		return "is there already"
	case migrate.Named:
		return "is there already, named anew"
	case migrate.Skipped:
		return "skipped: it has no name"
	}
	return fmt.Sprintf("failed: %v", i.Err)
}
