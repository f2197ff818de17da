// Command imagebench pulls the same images with gantry and with containerd, in turns, from a registry
// with TLS on the loopback, and prints medians of what each pull took to the return of PullImage: time,
// CPU seconds of the server, and memory over what it had before. It makes the images of this machine's
// own files. Run it on a machine of its own (hack/lab).
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"gantry/internal/labimage"
)

func main() {
	var o options
	flag.StringVar(&o.gantry, "gantry", "bin/gantry", "gantry's `BINARY`, gantry-keeper beside it")
	flag.StringVar(&o.containerd, "containerd", "", "containerd's `BINARY`; gantry alone if it is not given")
	flag.StringVar(&o.dir, "dir", "", "`DIR` on the disk to measure; a temporary one if it is not given")
	flag.IntVar(&o.rounds, "rounds", 5, "pulls of each image by each server")
	flag.Int64Var(&o.megabytes, "mb", 300, "size of an image's files")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "imagebench:", err)
		os.Exit(1)
	}
}

type options struct {
	gantry, containerd, dir string
	rounds                  int
	megabytes               int64
}

func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp(o.dir, "imagebench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	registry, err := labimage.Serve(labimage.Config{TLS: true})
	if err != nil {
		return err
	}
	defer registry.Close()
	images, err := pushAll(registry, o.megabytes<<20)
	if err != nil {
		return err
	}
	certs := filepath.Join(dir, "certs.d")
	if err := writeCerts(certs, registry); err != nil {
		return err
	}
	var servers []*server
	defer func() {
		for _, s := range servers {
			s.stop()
		}
	}()
	for _, sync := range []bool{true, false} {
		s, err := startGantry(ctx, o.gantry, filepath.Join(dir, fmt.Sprint("gantry-", sync)), certs, sync)
		if err != nil {
			return err
		}
		servers = append(servers, s)
		if o.containerd == "" {
			continue
		}
		if s, err = startContainerd(ctx, o.containerd, filepath.Join(dir, fmt.Sprint("containerd-", sync)), certs, sync); err != nil {
			return err
		}
		servers = append(servers, s)
	}
	results := make(map[string][]sample)
	began, busy := time.Now(), machineBusy()
	for round := range o.rounds {
		for _, img := range images {
			for i := range servers {
				s := servers[(i+round)%len(servers)] // nobody is always first
				got, err := s.measure(ctx, img.ref)
				if err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
				fmt.Fprintf(os.Stderr, "round %d  %s  %s: %.2f s, CPU %.2f s, %.0f MiB\n", round+1, img.name, s.name, got.seconds, got.cpu, got.memory)
				key := img.name + "\t" + s.name
				results[key] = append(results[key], got)
			}
		}
	}
	wall := time.Since(began).Seconds()
	fmt.Printf("%d rounds; the machine was busy %.2f of %d CPUs\n", o.rounds, (machineBusy()-busy)/wall, cpus())
	return report(images, servers, results)
}

// report prints medians, and those of gantry as parts of containerd's.
func report(images []pushed, servers []*server, results map[string][]sample) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "image\tserver\tseconds\t(min-max)\tCPU s\tmemory MiB")
	for _, img := range images {
		for _, s := range servers {
			all := results[img.name+"\t"+s.name]
			secs := values(all, func(x sample) float64 { return x.seconds })
			fmt.Fprintf(w, "%s\t%s\t%.2f\t(%.2f-%.2f)\t%.2f\t%.0f\n", img.name, s.name, median(secs), secs[0], secs[len(secs)-1],
				median(values(all, func(x sample) float64 { return x.cpu })), median(values(all, func(x sample) float64 { return x.memory })))
		}
	}
	return w.Flush()
}

func values(all []sample, f func(sample) float64) []float64 {
	out := make([]float64, len(all))
	for i, s := range all {
		out[i] = f(s)
	}
	slices.Sort(out)
	return out
}

func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
