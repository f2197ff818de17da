package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gantry/internal/bench"
)

// plan says how much is measured.
type plan struct {
	rounds, lives, parallel int
	logRounds, pullRounds   int
	logBytes                int64
	crowds                  []int
	launch                  time.Duration // of as many pods as join until the next crowd is looked at
	looks                   time.Duration // of one call at a crowd
	idle                    time.Duration
	execs                   int
}

func (o *options) plan() plan {
	if o.quick {
		return plan{rounds: 8, lives: 5, parallel: 24, logRounds: 3, pullRounds: 3, logBytes: 200e6, crowds: []int{100},
			launch: 40 * time.Second, looks: time.Second, idle: 5 * time.Second, execs: 100}
	}
	return plan{rounds: 15, lives: 8, parallel: 48, logRounds: 7, pullRounds: 7, logBytes: 200e6, crowds: []int{100, 500},
		launch: 2 * time.Minute, looks: 3 * time.Second, idle: 20 * time.Second, execs: 500}
}

// workers is how many pods live at once where they do not live one after the other.
const workers = 8

// turnTime is what a turn may take however little time there is.
const turnTime = 30 * time.Second

// measurement is all that is measured, of whom.
type measurement struct {
	options  *options
	registry *registry
	servers  []*server
	results  *bench.Results
	load     *load
	began    time.Time
	failed   error // what gantry did not do
}

// part is one of what is measured, for one runtime and round at a time.
type part struct {
	name   string
	rounds int
	share  float64 // of the time there is, beside those of the parts to come
	both   bool    // gantry on CNI is in it too, and limits are measured again
	do     func(ctx context.Context, s *server, round int) error
}

// measure does every part in rounds in which the runtimes take turns, and saves after each turn.
func (m *measurement) measure(ctx context.Context) error {
	p := m.options.plan()
	parts := []part{
		{"life", p.rounds, 0.3, true, m.lives},
		{"exec", p.logRounds, 0.05, false, func(ctx context.Context, s *server, _ int) error {
			return s.Execs(ctx, s.pods(m.options), 50, p.execs, m.results.Scope("exec, 50 a second", s.Name))
		}},
		{"log", p.logRounds, 0.12, false, m.logs},
		{"pull", p.pullRounds, 0.17, true, m.pulls},
		{"crowd", 1, 0.36, false, m.crowd},
	}
	parts = slices.DeleteFunc(parts, func(p part) bool { return !m.options.wants(p.name) })
	shares := 0.0
	for _, part := range parts {
		shares += part.share
	}
	if err := m.save(); err != nil { // what was measured before
		return err
	}
	for _, part := range parts {
		left := float64(m.options.limit - time.Since(m.began))
		if err := m.rounds(ctx, part, time.Duration(left*part.share/shares)); err != nil {
			return err
		}
		shares -= part.share
	}
	return m.failed
}

// rounds does a part as often as there is time for. No round begins of which more than half would be after
// that, as far as those before can tell; but each part is done once.
func (m *measurement) rounds(ctx context.Context, p part, share time.Duration) error {
	end := time.Now().Add(share)
	var longest time.Duration
	if m.options.rounds > 0 {
		p.rounds = min(p.rounds, m.options.rounds)
	}
	for round := range p.rounds {
		began := time.Now()
		if round > 0 && began.Add(longest/2).After(end) {
			progress("%s: no time for more than %d rounds of %d", p.name, round, p.rounds)
			break
		}
		progress("%s, round %d of %d", p.name, round+1, p.rounds)
		all := slices.DeleteFunc(slices.Clone(m.servers), func(s *server) bool {
			return s.outer == nil || s.turns > 0 && round%s.turns > 0 || !p.both && s.Name == bench.Subject && s.Network == "cni"
		})
		for i := range all {
			s := all[(i+round)%len(all)] // nobody is always first
			bound := time.Until(end)
			if round == 0 {
				bound /= time.Duration(len(all) - i)
			}
			bound = max(turnTime, bound)
			if err := m.turn(ctx, p, s, turn{round, bound}); err != nil {
				return err
			}
			if err := m.save(); err != nil {
				return err
			}
		}
		if p.both && m.options.wants("floors") {
			if err := limitsAgain(ctx, m, round); err != nil {
				return err
			}
		}
		longest = max(longest, time.Since(began))
	}
	return nil
}

// turn is that of one runtime in a round.
type turn struct {
	round int
	bound time.Duration
}

// turn does a part of one runtime. What a peer does not do, or not in its time, is left out, and that is said
// beside the results: one that hangs does not hold up the others. One that failed is not asked again.
func (m *measurement) turn(ctx context.Context, p part, s *server, now turn) error {
	within, cancel := context.WithTimeout(ctx, now.bound)
	defer cancel()
	err := p.do(within, s, now.round)
	if err == nil || ctx.Err() != nil {
		return err
	}
	what := fmt.Sprintf("%s, part %q, round %d", s.Name, p.name, now.round+1)
	if within.Err() != nil {
		m.leftOut(what+", what it had not done after "+now.bound.Round(time.Second).String(), err)
		return nil
	}
	if s.label == bench.Subject { // the others are measured all the same, but this is no success
		m.leftOut(what, err)
		m.failed = errors.Join(m.failed, err)
		return nil
	}
	m.leftOut(what+" and later", err)
	return s.end()
}

func (o *options) wants(part string) bool {
	return o.only == "" || slices.Contains(strings.Split(o.only, ","), part)
}

func (s *server) pods(o *options) *bench.Pods {
	return &bench.Pods{Image: s.image, CgroupParent: "/pods", LogDir: filepath.Join(o.dir, "logs")}
}

// lives measures lives on the runtime's network and on the node's, one after the other and side by side.
func (m *measurement) lives(ctx context.Context, s *server, _ int) error {
	p := m.options.plan()
	for _, host := range []bool{false, true} {
		network := s.Network
		if host {
			if s.Name == bench.Subject && s.Network == "cni" {
				continue
			}
			network = "host"
		}
		for _, at := range []int{1, workers} {
			l := &bench.Lives{Pods: *s.pods(m.options), Count: p.lives, Workers: at}
			l.Host = host
			if at > 1 {
				l.Count = p.parallel
			}
			if err := s.Life(ctx, l, m.results.Scope(bench.LifeCase(network, at), s.Name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// logs measures short and long lines from one container, and, each third round, short ones from 50.
func (m *measurement) logs(ctx context.Context, s *server, round int) error {
	for _, c := range []struct {
		name             string
		line, containers int
	}{{"lines of 100 bytes", 100, 1}, {"lines of 15000 bytes", 15000, 1}, {"lines of 100 bytes, 50 containers", 100, 50}} {
		if c.containers > 1 && round%3 > 0 {
			continue
		}
		l := &bench.Logs{Pods: *s.pods(m.options), Bytes: m.options.plan().logBytes, Line: c.line, Containers: c.containers, Dir: m.options.dir, Timeout: 5 * time.Minute}
		where := fmt.Sprintf("log of %d MB, %s", l.Bytes/1e6, c.name)
		if err := s.Log(ctx, l, m.results.Scope(where, s.Name)); err != nil {
			return err
		}
	}
	return nil
}

// pulls lets the runtime pull what it does not have.
func (m *measurement) pulls(ctx context.Context, s *server, _ int) error {
	name := s.Name
	if name == bench.Subject && s.Network == "cni" {
		name += ", no sync"
	}
	for _, p := range m.registry.big {
		before := m.registry.Requests(http.MethodGet, "/blobs/")
		if err := s.Pull(ctx, p.refs, m.results.Scope(p.name, name)); err != nil {
			return err
		}
		if got := m.registry.Requests(http.MethodGet, "/blobs/") - before; got < p.blobs {
			return fmt.Errorf("%s: %s: it asked for %d blobs of %d, so it had the others", s.Name, p.name, got, p.blobs)
		}
	}
	return nil
}

// crowd is the last part: the pods are left to the end of their runtime, which comes then, as what they
// cost is not to be that of the next.
func (m *measurement) crowd(ctx context.Context, s *server, _ int) error {
	p := m.options.plan()
	launch := p.launch
	if end, ok := ctx.Deadline(); ok {
		launch = min(launch, time.Until(end)/2) // what was not looked at was launched for nothing
	}
	c := &bench.Crowd{
		Pods: *s.pods(m.options), Counts: p.crowds, Launch: launch, Idle: p.idle, Calls: 50, Looks: p.looks, Events: 10, Leave: true,
	}
	c.Last = func(ctx context.Context, to bench.Scope) error {
		took, err := s.restart(ctx)
		if err == nil {
			to.Took("restart until ready", took)
		}
		return err
	}
	err := s.Crowd(ctx, c, func(count int) bench.Scope { return m.results.Scope(fmt.Sprintf("%d pods", count), s.Name) })
	return errors.Join(err, s.end())
}
