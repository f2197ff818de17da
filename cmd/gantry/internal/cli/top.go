package cli

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/client"
)

// What a terminal does (ECMA-48, and xterm's second screen).
const (
	screenOpen  = "\x1b[?1049h\x1b[?25l" // the second screen, without a cursor
	screenClose = "\x1b[?25h\x1b[?1049l"
	screenHome  = "\x1b[H"
	lineClear   = "\x1b[K" // to the end of the line
	restClear   = "\x1b[J" // below
)

func (a *app) topCommand() *cobra.Command {
	var (
		interval time.Duration
		by       string
	)
	cmd := &cobra.Command{
		Use: "top", Short: "Show what containers use, live", Args: cobra.NoArgs,
		Long: "Show what containers use, the largest first, again every --interval until ctrl-c. Where the output is no\n" +
			"terminal the table is printed once, without control characters.",
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if _, ok := orders[by]; !ok {
				return &usageError{cmd.CommandPath(), fmt.Errorf("--sort: %q is not cpu, memory or disk", by)}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error { return a.top(ctx, c, interval, orders[by]) })
		},
	}
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "time between two readings")
	cmd.Flags().StringVar(&by, "sort", "cpu", "cpu, memory or disk")
	return cmd
}

// usage is what a container uses now, with the reading before it.
type usage struct{ before, now *v1.ContainerStats }

// orders put the largest first.
var orders = map[string]func(usage) float64{
	"cpu": func(u usage) float64 {
		if u.before == nil {
			return 0
		}
		was, is := u.before.GetCpu(), u.now.GetCpu()
		used := float64(is.GetUsageCoreNanoSeconds().GetValue()) - float64(was.GetUsageCoreNanoSeconds().GetValue())
		return used / float64(max(1, is.GetTimestamp()-was.GetTimestamp()))
	},
	"memory": func(u usage) float64 { return float64(u.now.GetMemory().GetWorkingSetBytes().GetValue()) },
	"disk":   func(u usage) float64 { return float64(u.now.GetWritableLayer().GetUsedBytes().GetValue()) },
}

// top reads until ctx ends, which is no error, or once when nobody looks.
func (a *app) top(ctx context.Context, c *client.Client, interval time.Duration, by func(usage) float64) error {
	live := term.IsTerminal(int(a.std.Out.Fd()))
	before, err := readStats(ctx, c)
	if err != nil {
		return err
	}
	if live {
		fmt.Fprint(a.out, screenOpen)
		defer fmt.Fprint(a.out, screenClose)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval):
		}
		now, failed := readStats(ctx, c)
		if ctx.Err() != nil {
			return nil
		}
		if failed != nil {
			return failed
		}
		if failed = a.draw(before, now, by); failed != nil || !live {
			return failed
		}
		before = now
	}
}

// draw prints the table, over the last one where the output is a terminal.
func (a *app) draw(before, now []*v1.ContainerStats, by func(usage) float64) error {
	table, err := topTable(before, now, by)
	if err != nil {
		return err
	}
	if fd := int(a.std.Out.Fd()); term.IsTerminal(fd) {
		width, height, failed := term.GetSize(fd)
		if failed != nil {
			return fmt.Errorf("size of the terminal: %w", failed)
		}
		table = screen(table, width, height)
	}
	_, err = fmt.Fprint(a.out, table)
	return err
}

func topTable(before, now []*v1.ContainerStats, by func(usage) float64) (string, error) {
	earlier := map[string]*v1.ContainerStats{}
	for _, s := range before {
		earlier[s.GetAttributes().GetId()] = s
	}
	weight := map[string]float64{}
	var cpu float64
	var memory uint64
	for _, s := range now {
		u := usage{earlier[s.GetAttributes().GetId()], s}
		weight[s.GetAttributes().GetId()] = by(u)
		cpu += orders["cpu"](u)
		memory += s.GetMemory().GetWorkingSetBytes().GetValue()
	}
	rows := statsRows(before, now)
	slices.SortStableFunc(rows, func(x, y row) int { return cmp.Compare(weight[y.id], weight[x.id]) })
	var b bytes.Buffer
	fmt.Fprintf(&b, "%d containers, CPU %.1f %%, memory %s\n\n", len(now), 100*cpu, size(memory))
	f := format{name: "table"}
	err := f.print(&b, []string{"CONTAINER ID", "POD", "NAME", "CPU %", "CPU TIME", "MEMORY", "DISK"}, rows)
	return b.String(), err
}

// screen draws text over what a terminal shows, cut to its size. The last line stays free.
func screen(text string, width, height int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	lines = lines[:min(len(lines), max(1, height-1))]
	var b strings.Builder
	b.WriteString(screenHome)
	for _, l := range lines {
		if r := []rune(l); len(r) > width {
			l = string(r[:width])
		}
		b.WriteString(l + lineClear + "\r\n")
	}
	return b.String() + restClear
}
