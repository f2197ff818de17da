package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/client"
	"gantry/cmd/gantry/internal/manifest"
)

func (a *app) stopCommand() *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use: "stop POD|CONTAINER...", Short: "Stop pods or containers", Args: cobra.MinimumNArgs(1),
		Long: "Stop containers, or pods with all their containers: first the stop signal, after the grace period SIGKILL.\nA stopped pod keeps its containers' logs and exit codes until it is removed.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.each(args, func(arg string) error {
					t, err := c.PodOrContainer(ctx, arg)
					if err != nil {
						return err
					}
					if t.Container != nil {
						return stopContainer(ctx, c, t.Container.Id, grace)
					}
					if !cmd.Flags().Changed("time") {
						return stopPod(ctx, c, t.Pod.Id, graceOf(t.Pod, grace))
					}
					return stopPod(ctx, c, t.Pod.Id, grace)
				})
			})
		},
	}
	cmd.Flags().DurationVarP(&grace, "time", "t", 10*time.Second, "grace period; unset, that of the pod's manifest goes before it")
	return cmd
}

func (a *app) rmCommand() *cobra.Command {
	var force, all bool
	cmd := &cobra.Command{
		Use: "rm POD|CONTAINER...", Short: "Remove pods or containers",
		Long: "Remove pods with their containers, or containers. What still runs is refused without --force.\nLogs and emptyDir volumes of a pod that `gantry run` made go with it.",
		Args: func(cmd *cobra.Command, args []string) error {
			if all {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.MinimumNArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				if all {
					pods, err := c.Runtime.ListPodSandbox(ctx, nil)
					if err != nil {
						return fmt.Errorf("list pods: %w", err)
					}
					for _, p := range pods {
						args = append(args, p.Id)
					}
				}
				return a.each(args, func(arg string) error {
					t, err := c.PodOrContainer(ctx, arg)
					if err != nil {
						return err
					}
					if t.Container != nil {
						return removeContainer(ctx, c, t.Container, force)
					}
					return removePod(ctx, c, t.Pod, force)
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also what still runs, killing it at once")
	cmd.Flags().BoolVarP(&all, "all", "a", false, "all pods")
	return cmd
}

// graceOf is the grace period that the pod's manifest gave.
func graceOf(p *v1.PodSandbox, otherwise time.Duration) time.Duration {
	d, err := time.ParseDuration(p.Annotations[manifest.AnnotationGrace])
	if err != nil || d < 0 {
		return otherwise
	}
	return d
}

func stopContainer(ctx context.Context, c *client.Client, id string, grace time.Duration) error {
	if err := c.Runtime.StopContainer(ctx, id, int64(grace.Round(time.Second)/time.Second)); err != nil {
		return fmt.Errorf("stop container: %w", err)
	}
	return nil
}

// stopPod stops the containers with their grace period, all at once, and then the pod.
func stopPod(ctx context.Context, c *client.Client, id string, grace time.Duration) error {
	containers, err := c.Runtime.ListContainers(ctx, &v1.ContainerFilter{PodSandboxId: id})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	errs := make(chan error, len(containers))
	running := 0
	for _, x := range containers {
		if x.State == v1.ContainerState_CONTAINER_RUNNING {
			running++
			go func() { errs <- stopContainer(ctx, c, x.Id, grace) }()
		}
	}
	for range running {
		if e := <-errs; e != nil && !client.NotFound(e) {
			err = e
		}
	}
	if err != nil {
		return err
	}
	if err := c.Runtime.StopPodSandbox(ctx, id); err != nil {
		return fmt.Errorf("stop pod: %w", err)
	}
	return nil
}

func removeContainer(ctx context.Context, c *client.Client, x *v1.Container, force bool) error {
	if x.State == v1.ContainerState_CONTAINER_RUNNING && !force {
		return fmt.Errorf("container %s runs: stop it first, or use --force", x.Metadata.GetName())
	}
	if err := c.Runtime.RemoveContainer(ctx, x.Id); err != nil {
		return fmt.Errorf("remove container: %w", err)
	}
	return nil
}

func removePod(ctx context.Context, c *client.Client, p *v1.PodSandbox, force bool) error {
	if p.State == v1.PodSandboxState_SANDBOX_READY && !force {
		return fmt.Errorf("pod %s runs: stop it first, or use --force", client.PodName(p))
	}
	if err := c.Runtime.StopPodSandbox(ctx, p.Id); err != nil {
		return fmt.Errorf("stop pod: %w", err)
	}
	if err := c.Runtime.RemovePodSandbox(ctx, p.Id); err != nil {
		return fmt.Errorf("remove pod: %w", err)
	}
	return removeDirectories(p)
}
