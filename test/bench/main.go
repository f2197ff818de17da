// Command bench measures gantry and, where their binaries are given, containerd and CRI-O, in turns, each in a
// cgroup and namespaces of its own, and writes what it found as a table, JSON and plots. Beside the
// figures stand the nearest limits, measured alone. Run it on a machine of its own (hack/lab).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"gantry/internal/bench"
)

// options of the command.
type options struct {
	gantry, containerd, crio string
	tools, dir, out          string
	quick                    bool
	limit                    time.Duration
	only                     string
}

func main() {
	var o options
	flag.StringVar(&o.gantry, "gantry", "bin/gantry", "gantry's `BINARY`, gantry-keeper beside it")
	flag.StringVar(&o.containerd, "containerd", "", "containerd's `BINARY`, its shim beside it; left out if not given")
	flag.StringVar(&o.crio, "crio", "", "CRI-O's `BINARY`; left out if not given")
	flag.StringVar(&o.tools, "tools", ".cache/bench", "`DIR` of enclose, join and pinns")
	flag.StringVar(&o.dir, "dir", "", "`DIR` on the disk to measure; a temporary one if not given")
	flag.StringVar(&o.out, "out", "docs/benchmarks", "`DIR` for the results")
	flag.StringVar(&o.only, "only", "", "comma-separated `PARTS`: floors, life, exec, log, crowd; all if not given")
	flag.BoolVar(&o.quick, "quick", false, "fewer rounds")
	flag.DurationVar(&o.limit, "limit", 2*time.Hour, "time after which no second round of anything begins")
	registry := flag.Bool("registry", false, "serve the images that pods run on the loopback, and measure nothing")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	do := func() error { return run(ctx, &o) }
	if *registry {
		do = func() error { return serveImages(ctx) }
	}
	if err := do(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o *options) (err error) {
	for _, path := range []*string{&o.gantry, &o.containerd, &o.crio, &o.tools, &o.out} {
		if *path != "" {
			if *path, err = filepath.Abs(*path); err != nil {
				return err
			}
		}
	}
	temporary := o.dir == ""
	if o.dir, err = os.MkdirTemp(o.dir, "bench-"); err != nil {
		return err
	}
	if err = os.Chmod(o.dir, 0o755); err != nil {
		return err
	}
	var servers []*server
	defer func() {
		for _, s := range servers {
			err = errors.Join(err, s.end())
		}
		if temporary && err == nil {
			_ = os.RemoveAll(o.dir)
		}
	}()
	for _, begin := range starters(o) {
		s, failed := begin(ctx, o)
		if failed != nil {
			return failed
		}
		servers = append(servers, s)
	}
	results := bench.NewResults()
	if o.wants("floors") {
		if err = floors(ctx, o, results); err != nil {
			return err
		}
	}
	load, err := watchLoad(servers)
	if err != nil {
		return err
	}
	began := time.Now()
	return measure(ctx, o, servers, results, func() error {
		foreign, failed := load.end()
		if failed != nil {
			return failed
		}
		return write(o.out, bench.Report{
			Machine: bench.ThisMachine(), When: began.UTC().Truncate(time.Second), Took: time.Since(began).Round(time.Second).String(),
			Foreign: foreign, Notes: results.Notes(), Rows: beside(results.Rows()),
		})
	})
}

// beside puts peers, who have no builtin network, beside gantry's with what CNI's bridge costs them.
func beside(rows []bench.Row) []bench.Row {
	for _, r := range slices.Clone(rows) {
		for _, at := range []int{1, workers} {
			if r.Case == lifeCase("cni", at) && r.Name != "gantry" {
				r.Case, r.Name = lifeCase("builtin", at), r.Name+" on CNI"
				rows = append(rows, r)
			}
		}
	}
	return rows
}

// starters are those of the runtimes that there are.
func starters(o *options) []func(context.Context, *options) (*server, error) {
	all := []func(context.Context, *options) (*server, error){
		func(ctx context.Context, o *options) (*server, error) { return gantry(ctx, o, "builtin") },
		func(ctx context.Context, o *options) (*server, error) { return gantry(ctx, o, "cni") },
	}
	if o.containerd != "" {
		all = append(all, containerd)
	}
	if o.crio != "" {
		all = append(all, crio)
	}
	return all
}

// write writes the report in every form.
func write(dir string, r bench.Report) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files, err := r.Files()
	if err != nil {
		return err
	}
	old, err := filepath.Glob(filepath.Join(dir, "plot-*.svg"))
	if err != nil {
		return err
	}
	for _, plot := range old { // of a measurement with other cases
		if err := os.Remove(plot); err != nil {
			return err
		}
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil { //nolint:gosec // for everybody to read
			return err
		}
	}
	return nil
}
