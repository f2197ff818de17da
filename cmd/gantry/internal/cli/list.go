package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/client"
)

func (a *app) podsCommand() *cobra.Command {
	var f format
	cmd := &cobra.Command{
		Use: "pods", Short: "List pods", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				pods, err := c.Runtime.ListPodSandbox(ctx, nil)
				if err != nil {
					return fmt.Errorf("list pods: %w", err)
				}
				slices.SortFunc(pods, func(x, y *v1.PodSandbox) int { return cmp.Compare(y.CreatedAt, x.CreatedAt) })
				var rows []row
				for _, p := range pods {
					rows = append(rows, row{id: p.Id, msg: p, cells: []string{
						client.Short(p.Id), p.Metadata.GetNamespace(), p.Metadata.GetName(), podState(p.State), orDash(p.RuntimeHandler), age(p.CreatedAt),
					}})
				}
				return f.print(a.out, []string{"POD ID", "NAMESPACE", "NAME", "STATE", "HANDLER", "AGE"}, rows)
			})
		},
	}
	f.flags(cmd)
	return cmd
}

func podState(s v1.PodSandboxState) string {
	if s == v1.PodSandboxState_SANDBOX_READY {
		return "ready"
	}
	return "not ready"
}

func containerState(s v1.ContainerState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "CONTAINER_"))
}

func orDash(s string) string { return cmp.Or(s, "-") }

func (a *app) psCommand() *cobra.Command {
	var (
		f       format
		all     bool
		foreign bool
		pod     string
	)
	cmd := &cobra.Command{
		Use: "ps", Short: "List containers", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if foreign {
				return a.psForeign(cmd.Context(), &f)
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				containers, pods, err := c.Everything(ctx)
				if err != nil {
					return err
				}
				if pod != "" {
					p, err := c.Pod(ctx, pod)
					if err != nil {
						return err
					}
					containers = slices.DeleteFunc(containers, func(x *v1.Container) bool { return x.PodSandboxId != p.Id })
				}
				if !all {
					containers = slices.DeleteFunc(containers, func(x *v1.Container) bool { return x.State != v1.ContainerState_CONTAINER_RUNNING })
				}
				return f.print(a.out, []string{"CONTAINER ID", "POD", "NAME", "IMAGE", "STATE", "AGE"}, containerRows(containers, pods))
			})
		},
	}
	f.flags(cmd)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that do not run")
	cmd.Flags().StringVarP(&pod, "pod", "p", "", "only those of `POD`")
	cmd.Flags().BoolVar(&foreign, "foreign", false, "what cri-dockerd or dockershim left on Docker, whatever its state, with the pause containers (POD)")
	return cmd
}

func containerRows(containers []*v1.Container, pods map[string]*v1.PodSandbox) []row {
	slices.SortFunc(containers, func(x, y *v1.Container) int { return cmp.Compare(y.CreatedAt, x.CreatedAt) })
	var rows []row
	for _, x := range containers {
		owner := client.Short(x.PodSandboxId)
		if p, ok := pods[x.PodSandboxId]; ok {
			owner = client.PodName(p)
		}
		rows = append(rows, row{id: x.Id, msg: x, cells: []string{
			client.Short(x.Id), owner, x.Metadata.GetName(), imageName(x), containerState(x.State), age(x.CreatedAt),
		}})
	}
	return rows
}

// imageName is what the user wrote, where the server knows it.
func imageName(x *v1.Container) string {
	return cmp.Or(x.Image.GetUserSpecifiedImage(), x.Image.GetImage(), client.Short(x.ImageRef))
}

func (a *app) imagesCommand() *cobra.Command {
	var f format
	var pulling bool
	cmd := &cobra.Command{
		Use: "images", Short: "List images, and look after them", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if pulling {
				return a.showPulls(cmd.Context(), f.name)
			}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				images, err := c.Images.ListImages(ctx, nil)
				if err != nil {
					return fmt.Errorf("list images: %w", err)
				}
				var rows []row
				for _, img := range images {
					for _, name := range imageNames(img) {
						rows = append(rows, row{id: img.Id, msg: img, cells: []string{name[0], name[1], client.Short(img.Id), size(img.Size)}})
					}
				}
				slices.SortFunc(rows, func(x, y row) int { return slices.Compare(x.cells, y.cells) })
				if f.quiet || f.name == "json" {
					rows = slices.CompactFunc(rows, func(x, y row) bool { return x.id == y.id })
				}
				return f.print(a.out, []string{"IMAGE", "TAG", "IMAGE ID", "SIZE"}, rows)
			})
		},
	}
	f.flags(cmd)
	cmd.Flags().BoolVar(&pulling, "pulling", false, "the pulls under way, with the progress of their layers")
	cmd.AddCommand(a.verifyCommand(), a.exportCommand(), a.importCommand(), a.untagCommand())
	return cmd
}

// imageNames are the (name, tag) pairs of an image; one without tags is shown by its digest's name.
func imageNames(img *v1.Image) [][2]string {
	var out [][2]string
	for _, ref := range img.RepoTags {
		i := strings.LastIndexByte(ref, ':')
		out = append(out, [2]string{ref[:max(i, 0)], ref[i+1:]})
	}
	if len(out) > 0 {
		return out
	}
	name := "<none>"
	if len(img.RepoDigests) > 0 {
		name, _, _ = strings.Cut(img.RepoDigests[0], "@")
	}
	return [][2]string{{name, "<none>"}}
}
