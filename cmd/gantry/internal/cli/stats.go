package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/client"
)

func (a *app) statsCommand() *cobra.Command {
	var (
		f        format
		interval time.Duration
	)
	cmd := &cobra.Command{
		Use: "stats [POD|CONTAINER...]", Short: "Print what containers use",
		Long: "Print what containers use. CPU is the share of one CPU between two readings that lie --interval apart.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				before, err := readStats(ctx, c)
				if err != nil {
					return err
				}
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(interval):
				}
				now, err := readStats(ctx, c)
				if err != nil {
					return err
				}
				if now, err = selectStats(ctx, c, now, args); err != nil {
					return err
				}
				return f.print(a.out, []string{"CONTAINER ID", "POD", "NAME", "CPU %", "CPU TIME", "MEMORY", "DISK"}, statsRows(before, now))
			})
		},
	}
	f.flags(cmd)
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "time between the two readings")
	return cmd
}

func readStats(ctx context.Context, c *client.Client) ([]*v1.ContainerStats, error) {
	all, err := c.Runtime.ListContainerStats(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("read statistics: %w", err)
	}
	return all, nil
}

// selectStats keeps what the arguments name; none mean everything.
func selectStats(ctx context.Context, c *client.Client, all []*v1.ContainerStats, args []string) ([]*v1.ContainerStats, error) {
	if len(args) == 0 {
		return all, nil
	}
	ids := map[string]bool{}
	for _, arg := range args {
		t, err := c.PodOrContainer(ctx, arg)
		if err != nil {
			return nil, err
		}
		if t.Container != nil {
			ids[t.Container.Id] = true
			continue
		}
		of, err := c.Runtime.ListContainers(ctx, &v1.ContainerFilter{PodSandboxId: t.Pod.Id})
		if err != nil {
			return nil, fmt.Errorf("list containers: %w", err)
		}
		for _, x := range of {
			ids[x.Id] = true
		}
	}
	return slices.DeleteFunc(all, func(s *v1.ContainerStats) bool { return !ids[s.Attributes.GetId()] }), nil
}

func statsRows(before, now []*v1.ContainerStats) []row {
	earlier := map[string]*v1.CpuUsage{}
	for _, s := range before {
		earlier[s.Attributes.GetId()] = s.Cpu
	}
	slices.SortFunc(now, func(x, y *v1.ContainerStats) int {
		return cmp.Or(cmp.Compare(podOf(x), podOf(y)), cmp.Compare(x.Attributes.GetMetadata().GetName(), y.Attributes.GetMetadata().GetName()))
	})
	var rows []row
	for _, s := range now {
		id := s.Attributes.GetId()
		rows = append(rows, row{id: id, msg: s, cells: []string{
			client.Short(id), podOf(s), s.Attributes.GetMetadata().GetName(), cpuShare(earlier[id], s.Cpu),
			time.Duration(s.Cpu.GetUsageCoreNanoSeconds().GetValue()).Round(time.Millisecond).String(),
			size(s.Memory.GetWorkingSetBytes().GetValue()), size(s.WritableLayer.GetUsedBytes().GetValue()),
		}})
	}
	return rows
}

func podOf(s *v1.ContainerStats) string {
	l := s.Attributes.GetLabels()
	if l[client.LabelPodName] == "" {
		return "-"
	}
	return l[client.LabelPodNamespace] + "/" + l[client.LabelPodName]
}

func cpuShare(before, now *v1.CpuUsage) string {
	dt := now.GetTimestamp() - before.GetTimestamp()
	if before == nil || dt <= 0 {
		return "-"
	}
	used := float64(now.GetUsageCoreNanoSeconds().GetValue()) - float64(before.GetUsageCoreNanoSeconds().GetValue())
	return fmt.Sprintf("%.1f", 100*used/float64(dt))
}
