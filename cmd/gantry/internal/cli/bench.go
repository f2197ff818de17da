package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/client"
	"gantry/internal/bench"
)

// benchFlags are how `gantry bench` measures.
type benchFlags struct {
	bench.Pods
	lives, workers, crowd int
	cgroup                string
	json                  bool
}

func (a *app) benchCommand() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure a CRI runtime, this one or another", Args: cobra.NoArgs,
		Long: "Measure the runtime behind --endpoint, gantry or any other that speaks CRI v1: what each call of a pod's life\n" +
			"takes, one pod after the other and --workers at once, and what calls take that look at --pods pods. Its pods are\n" +
			"removed at the end. With --cgroup, the cgroup that the runtime, its helpers and the pods run in, CPU time and\n" +
			"memory are measured too. A machine that does something else meanwhile spoils every figure.",
		Example: "  gantry bench --endpoint unix:///run/containerd/containerd.sock --image docker.io/library/busybox:latest",
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if f.lives < 1 || f.workers < 1 || f.crowd < 0 {
				return &usageError{cmd.CommandPath(), errors.New("--lives and --workers are at least 1, --pods at least 0")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return a.bench(cmd.Context(), &f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.Image, "image", "docker.io/library/busybox:latest", "`REF` of an image with a shell; pulled if it is not there")
	flags.StringVar(&f.Handler, "runtime", "", "RuntimeClass `HANDLER` of the pods")
	flags.StringVar(&f.CgroupParent, "cgroup-parent", "", "cgroup `PATH` below which pods get theirs (default the runtime's choice)")
	flags.BoolVar(&f.Host, "host-network", false, "pods on the node's network")
	flags.IntVar(&f.lives, "lives", 20, "pods to measure one after the other, and as many for each worker")
	flags.IntVar(&f.workers, "workers", 8, "pods at once")
	flags.IntVar(&f.crowd, "pods", 100, "pods there are when lists and statistics are measured; 0 leaves that out")
	flags.StringVar(&f.cgroup, "cgroup", "", "cgroup `PATH` of the runtime and all it starts, below the cgroup mount")
	flags.BoolVar(&f.json, "json", false, "print JSON")
	return cmd
}

func (a *app) bench(ctx context.Context, f *benchFlags) (err error) {
	answer, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	t, err := bench.Dial(answer, "runtime", a.endpoint)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if f.cgroup != "" {
		if t.Cgroup, err = bench.OpenCgroup("/sys/fs/cgroup", f.cgroup); err != nil {
			return err
		}
	}
	version, err := t.Runtime.Version(ctx, &v1.VersionRequest{})
	if err != nil {
		return err
	}
	t.Name = version.RuntimeName + " " + version.RuntimeVersion
	if err = present(ctx, t, f.Image); err != nil {
		return err
	}
	if f.LogDir, err = os.MkdirTemp("", "gantry-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(f.LogDir)) }()
	results := bench.NewResults()
	err = measure(ctx, t, f, results) // what was measured before it failed is worth its time
	return errors.Join(err, a.measured(f, results))
}

// measured prints what was measured, and what was not.
func (a *app) measured(f *benchFlags, results *bench.Results) error {
	for _, note := range results.Notes() {
		fmt.Fprintln(a.err, "note:", note)
	}
	if !f.json {
		return bench.Table(a.out, results.Rows())
	}
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	return e.Encode(results.Rows())
}

// present pulls an image that the runtime does not have.
func present(ctx context.Context, t *bench.Target, ref string) error {
	image := &v1.ImageSpec{Image: ref}
	have, err := t.Images.ImageStatus(ctx, &v1.ImageStatusRequest{Image: image})
	if err == nil && have.Image != nil {
		return nil
	}
	if _, err = t.Images.PullImage(ctx, &v1.PullImageRequest{Image: image}); err != nil {
		return fmt.Errorf("pull %s: %s", ref, client.Message(err))
	}
	return nil
}

func measure(ctx context.Context, t *bench.Target, f *benchFlags, results *bench.Results) error {
	network := "pod network"
	if f.Host {
		network = "node's network"
	}
	l := &bench.Lives{Pods: f.Pods, Count: f.lives, Workers: 1}
	if err := t.Life(ctx, l, results.Scope("a pod's life, "+network, t.Name)); err != nil {
		return err
	}
	if f.workers > 1 {
		l.Count, l.Workers = f.lives*f.workers, f.workers
		if err := t.Life(ctx, l, results.Scope(fmt.Sprintf("%d pods at once, %s", f.workers, network), t.Name)); err != nil {
			return err
		}
	}
	if f.crowd == 0 {
		return nil
	}
	c := &bench.Crowd{Pods: f.Pods, Counts: []int{f.crowd}, Idle: 10 * time.Second, Calls: 100, Events: 10}
	return t.Crowd(ctx, c, func(count int) bench.Scope { return results.Scope(fmt.Sprintf("%d pods there", count), t.Name) })
}
