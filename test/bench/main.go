// Command bench measures gantry and, where their binaries are, containerd, CRI-O and gantry's own engine on
// Docker, in turns, each in a cgroup and namespaces of its own, and writes what it found as a table, JSON and
// plots. Beside the figures stand the nearest limits, measured alone. Run it on a machine of its own (hack/lab).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"gantry/internal/bench"
)

// options of the command.
type options struct {
	gantry, containerd, debian, crio, dockerd string
	tools, dir, out                           string
	quick                                     bool
	limit                                     time.Duration
	only                                      string
	rounds                                    int
}

func main() {
	var o options
	flag.StringVar(&o.gantry, "gantry", "bin/gantry", "gantry's `BINARY`, gantry-keeper beside it")
	flag.StringVar(&o.containerd, "containerd", "", "containerd's `BINARY`, its shim beside it; left out if it is not there")
	flag.StringVar(&o.debian, "debian", "", "`BINARY` of Debian's containerd, its shim beside it; left out if it is not there")
	flag.StringVar(&o.crio, "crio", "", "CRI-O's `BINARY`; left out if it is not there")
	flag.StringVar(&o.dockerd, "dockerd", "", "dockerd's `BINARY`, its containerd, shim and runc beside it; left out if it is not there")
	flag.StringVar(&o.tools, "tools", ".cache/bench", "`DIR` of enclose, join and pinns")
	flag.StringVar(&o.dir, "dir", "", "`DIR` on the disk to measure; a temporary one if not given")
	flag.StringVar(&o.out, "out", "docs/benchmarks", "`DIR` for the results")
	flag.StringVar(&o.only, "only", "", "comma-separated `PARTS`: floors, life, exec, log, pull, crowd; all if not given")
	flag.IntVar(&o.rounds, "rounds", 0, "at most so many rounds of each part; 0 is as many as there is time for")
	flag.BoolVar(&o.quick, "quick", false, "fewer rounds")
	flag.DurationVar(&o.limit, "limit", 72*time.Minute, "how long it may take")
	socket := flag.String("answers", "", "serve ready answers at a unix `SOCKET`, and measure nothing")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	do := func() error { return run(ctx, &o) }
	if *socket != "" {
		do = func() error { return answer(ctx, *socket) }
	}
	if err := do(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o *options) (err error) {
	for _, path := range []*string{&o.gantry, &o.containerd, &o.debian, &o.crio, &o.dockerd, &o.tools, &o.out} {
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
	m := &measurement{options: o, results: bench.NewResults(), began: time.Now()}
	defer func() {
		err = errors.Join(err, m.end())
		if temporary && err == nil {
			_ = os.RemoveAll(o.dir)
		}
	}()
	if m.registry, err = serve(); err != nil {
		return err
	}
	if o.wants("pull") || o.wants("floors") {
		progress("makes the images to pull")
		if err = m.registry.pushBig(); err != nil {
			return err
		}
	}
	if o.wants("floors") {
		progress("floors")
		if err = floors(ctx, m); err != nil {
			return err
		}
	}
	if err = m.begin(ctx); err != nil {
		return err
	}
	return m.measure(ctx)
}

// progress tells who waits what is done.
func progress(format string, args ...any) {
	fmt.Fprintln(os.Stderr, time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// beside puts peers, who have no builtin network, beside gantry's with what CNI's bridge costs them.
func beside(rows []bench.Row) []bench.Row {
	for _, r := range slices.Clone(rows) {
		for _, at := range []int{1, workers} {
			if r.Case == bench.LifeCase("cni", at) && !strings.HasPrefix(r.Name, bench.Subject+",") && r.Name != bench.Subject {
				r.Case, r.Name = bench.LifeCase("builtin", at), r.Name+" on CNI"
				rows = append(rows, r)
			}
		}
	}
	return rows
}

// begin starts the runtimes that there are. A peer that cannot be started is left out.
func (m *measurement) begin(ctx context.Context) error {
	o := m.options
	for _, peer := range []struct {
		called, binary string
		setup          func(*options, *registry) (setup, error)
	}{
		{"gantry", o.gantry, func(o *options, r *registry) (setup, error) { return gantry(o, r, "builtin") }},
		{"gantry", o.gantry, func(o *options, r *registry) (setup, error) { return gantry(o, r, "cni") }},
		{"containerd", o.containerd, containerd},
		{"Debian's containerd", o.debian, debian},
		{"CRI-O", o.crio, crio},
		{"gantry on Docker", o.dockerd, docker},
	} {
		if peer.binary == "" { // nobody asked for it
			continue
		}
		var s *server
		_, err := os.Stat(peer.binary)
		if err == nil {
			var c setup
			if c, err = peer.setup(o, m.registry); err == nil {
				s, err = begin(ctx, o, m.registry, c)
			}
		}
		switch {
		case err == nil:
			m.servers = append(m.servers, s)
		case peer.called == bench.Subject || ctx.Err() != nil:
			return err
		default:
			m.leftOut(peer.called, err)
		}
	}
	var err error
	m.load, err = watchLoad(m.servers)
	return err
}

// leftOut says beside the results what is not in them, and at once why.
func (m *measurement) leftOut(what string, err error) {
	why, _, _ := strings.Cut(err.Error(), "\n")
	m.results.Note("Left out: " + what + ": " + why + ".")
	progress("left out: %s: %v", what, err)
}

// end ends what is still there.
func (m *measurement) end() error {
	var err error
	for _, s := range m.servers {
		err = errors.Join(err, s.end())
	}
	if m.registry != nil {
		m.registry.Close()
	}
	return err
}

// save writes what was measured so far.
func (m *measurement) save() error {
	foreign, err := m.load.end()
	if err != nil {
		return err
	}
	rows := m.results.Rows()
	return write(m.options.out, bench.Report{
		Machine: bench.ThisMachine(), When: m.began.UTC().Truncate(time.Second), Took: time.Since(m.began).Round(time.Second).String(),
		Foreign: foreign, Notes: m.results.Notes(), Goals: bench.Judge(rows, runtime.NumCPU()), Rows: beside(rows),
	})
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
