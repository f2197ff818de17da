package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gantry/internal/bench"
)

// plan says how much is measured.
type plan struct {
	rounds, lives, parallel int
	logRounds               int
	logBytes                int64
	crowds                  []int
	launch                  time.Duration // of as many pods as join until the next crowd is looked at
	looks                   time.Duration // of one call at a crowd
	idle                    time.Duration
	execs                   int
}

func (o *options) plan() plan {
	if o.quick {
		return plan{rounds: 8, lives: 5, parallel: 24, logRounds: 3, logBytes: 200e6, crowds: []int{100},
			launch: time.Minute, looks: time.Second, idle: 10 * time.Second, execs: 100}
	}
	return plan{rounds: 15, lives: 8, parallel: 48, logRounds: 7, logBytes: 200e6, crowds: []int{100, 500},
		launch: 5 * time.Minute, looks: 5 * time.Second, idle: 30 * time.Second, execs: 500}
}

// workers is how many pods live at once where they do not live one after the other.
const workers = 8

// part is one of what is measured, for one runtime and round at a time.
type part struct {
	name   string
	rounds int
	share  float64 // of the time there is: no round begins later, but each is done once, and none takes longer
	do     func(ctx context.Context, s *server, round int) error
}

// measure does every part in rounds in which the runtimes take turns, and saves after each.
func measure(ctx context.Context, o *options, servers []*server, results *bench.Results, save func() error) error {
	p := o.plan()
	parts := []part{
		{"life", p.rounds, 0.5, func(ctx context.Context, s *server, _ int) error { return lives(ctx, o, s, results) }},
		{"exec", p.logRounds, 0.05, func(ctx context.Context, s *server, _ int) error {
			return s.Execs(ctx, s.pods(o), 50, p.execs, results.Scope("exec, 50 a second", s.Name))
		}},
		{"log", p.logRounds, 0.15, func(ctx context.Context, s *server, round int) error { return logs(ctx, o, s, round, results) }},
		{"crowd", 1, 0.3, func(ctx context.Context, s *server, _ int) error { return crowd(ctx, o, s, results) }},
	}
	if err := save(); err != nil { // what was measured before
		return err
	}
	for _, part := range parts {
		if !o.wants(part.name) {
			continue
		}
		began := time.Now()
		for round := range part.rounds {
			if round > 0 && time.Since(began).Seconds() > part.share*o.limit.Seconds() {
				break
			}
			fmt.Fprintf(os.Stderr, "%s %s, round %d of %d\n", time.Now().Format(time.TimeOnly), part.name, round+1, part.rounds)
			for i := range servers {
				s := servers[(i+round)%len(servers)] // nobody is always first
				if part.name != "life" && s.Network == "cni" && s.Name == "gantry" {
					continue // it differs from the other gantry in its network alone
				}
				if err := o.bounded(ctx, part, s, round, results); err != nil {
					return err
				}
				if err := save(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// bounded does a part. What a runtime does not get done in the part's share of the time is left out, and
// that is said beside the results: a peer that hangs does not hold up the others.
func (o *options) bounded(ctx context.Context, p part, s *server, round int, results *bench.Results) error {
	bound := time.Duration(p.share * float64(o.limit))
	within, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	err := p.do(within, s, round)
	if err == nil || ctx.Err() != nil || within.Err() == nil {
		return err
	}
	results.Note(fmt.Sprintf("Left out: of %s, part %q, round %d, what it had not done after %s (%v).",
		s.name, p.name, round+1, bound.Round(time.Second), err))
	return nil
}

func (o *options) wants(part string) bool {
	return o.only == "" || slices.Contains(strings.Split(o.only, ","), part)
}

func (s *server) pods(o *options) *bench.Pods {
	return &bench.Pods{Image: s.image, CgroupParent: "/pods", LogDir: filepath.Join(o.dir, "logs")}
}

// lives measures lives on the runtime's network and on the node's, one after the other and side by side.
func lives(ctx context.Context, o *options, s *server, results *bench.Results) error {
	p := o.plan()
	for _, host := range []bool{false, true} {
		network := s.Network
		if host {
			if s.Name == "gantry" && s.Network == "cni" {
				continue
			}
			network = "host"
		}
		for _, at := range []int{1, workers} {
			l := &bench.Lives{Pods: *s.pods(o), Count: p.lives, Workers: at}
			l.Host = host
			if at > 1 {
				l.Count = p.parallel
			}
			if err := s.Life(ctx, l, results.Scope(lifeCase(network, at), s.Name)); err != nil {
				return err
			}
		}
	}
	return nil
}

func lifeCase(network string, workers int) string {
	if workers == 1 {
		return "a pod's life, " + network + " network"
	}
	return fmt.Sprintf("pods' lives, %d at once, %s network", workers, network)
}

// logs measures short and long lines from one container, and, each third round, short ones from 50.
func logs(ctx context.Context, o *options, s *server, round int, results *bench.Results) error {
	for _, c := range []struct {
		name             string
		line, containers int
	}{{"lines of 100 bytes", 100, 1}, {"lines of 15000 bytes", 15000, 1}, {"lines of 100 bytes, 50 containers", 100, 50}} {
		if c.containers > 1 && round%3 > 0 {
			continue
		}
		l := &bench.Logs{Pods: *s.pods(o), Bytes: o.plan().logBytes, Line: c.line, Containers: c.containers, Dir: o.dir, Timeout: 5 * time.Minute}
		where := fmt.Sprintf("log of %d MB, %s", l.Bytes/1e6, c.name)
		if err := s.Log(ctx, l, results.Scope(where, s.Name)); err != nil {
			return err
		}
	}
	return nil
}

// crowd is the last part: the pods are left to the end of their runtime.
func crowd(ctx context.Context, o *options, s *server, results *bench.Results) error {
	p := o.plan()
	c := &bench.Crowd{
		Pods: *s.pods(o), Counts: p.crowds, Launch: p.launch, Idle: p.idle, Calls: 50, Looks: p.looks, Events: 10, Leave: true,
	}
	c.Last = func(ctx context.Context, to bench.Scope) error {
		took, err := s.restart(ctx)
		if err == nil {
			to.Took("restart until ready", took)
		}
		return err
	}
	return s.Crowd(ctx, c, func(count int) bench.Scope { return results.Scope(fmt.Sprintf("%d pods", count), s.Name) })
}
