// Command gantry-keeper keeps a node's containers: their streams, logs and exits. `gantry serve`
// starts it; nobody else needs to.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"

	"gantry/internal/keeper/holder"
	"gantry/internal/keeper/worker"
	"gantry/internal/killpoint"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "pause" {
		pause()
		return
	}
	var opt holder.Options
	flag.StringVar(&opt.StateDir, "state", "", "directory of the keeper's socket and records")
	flag.StringVar(&opt.CgroupPath, "cgroup", "", "cgroup of the keeper itself, below the cgroup mount")
	flag.BoolVar(&opt.Adopt, "adopt", false, "take over from a worker that lost its holder (internal)")
	flag.BoolVar(&opt.Resume, "resume", false, "go on after an upgrade (internal)")
	work := flag.Bool("worker", false, "be the worker (internal)")
	ready := flag.Bool("ready", false, "tell on descriptor 3 when the socket answers (internal)")
	flag.Parse()
	log.SetFlags(log.LstdFlags | log.Lmicroseconds | log.LUTC)
	if !filepath.IsAbs(opt.StateDir) {
		fmt.Fprintln(os.Stderr, "gantry-keeper: --state needs an absolute path")
		os.Exit(2)
	}
	var err error
	if *work {
		log.SetPrefix(fmt.Sprintf("worker %d: ", os.Getpid()))
		points := killpoint.FromEnv("worker")
		err = worker.Run(worker.Options{
			StateDir: opt.StateDir, CgroupPath: opt.CgroupPath,
			Hook: func(p worker.Point) { points.Reached(string(p)) },
		})
	} else {
		log.SetPrefix(fmt.Sprintf("holder %d: ", os.Getpid()))
		err = holder.Run(context.Background(), opt, announce(*ready))
	}
	if err != nil {
		log.Fatal(err)
	}
}

// announce returns the function that tells the starter how the start went.
func announce(wanted bool) func(string) {
	if !wanted {
		return func(string) {}
	}
	pipe := os.NewFile(3, "ready")
	return func(reason string) {
		if reason == "" {
			reason = "ok"
		}
		_, _ = io.Copy(pipe, strings.NewReader(reason))
		_ = pipe.Close()
	}
}
