package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/client"
)

func (a *app) rmiCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rmi IMAGE...", Short: "Remove images", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.each(args, func(arg string) error {
					resp, err := c.Images.ImageStatus(ctx, &v1.ImageSpec{Image: arg}, false)
					if err != nil {
						return fmt.Errorf("image %s: %w", arg, err)
					}
					if resp.Image == nil {
						return fmt.Errorf("image %q: not found", arg)
					}
					if err := c.Images.RemoveImage(ctx, &v1.ImageSpec{Image: resp.Image.Id}); err != nil {
						return fmt.Errorf("remove image %s: %w", arg, err)
					}
					return nil
				})
			})
		},
	}
}
