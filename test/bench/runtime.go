package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/bench"
)

// startTime is how long a runtime may take until it is ready.
const startTime = time.Minute

// server is a runtime under measurement, in a cgroup and namespaces of its own.
type server struct {
	*bench.Target
	setup
	tools string // directory of enclose and join
	image string // what its pods run
	group string // its cgroup, in every hierarchy
	outer *exec.Cmd
	used  time.Duration // the CPU time of one that has ended
}

// setup says how a runtime is started.
type setup struct {
	place
	label   string   // in reports, where its version comes behind it
	version string   // "" for what it says itself
	network string   // of pods that are not on the node's
	helpers []helper // started before it, and not again with it
	command []string
	turns   int // it takes part in every so many rounds; 0 is each
}

// helper is a daemon that a runtime needs.
type helper struct {
	socket  string // where it listens when it has started
	command []string
}

// place is where a runtime has its files.
type place struct {
	name   string
	dir    string // on the disk to measure
	state  string // short, because sockets are in it
	socket string
}

func newPlace(top, name string) (place, error) {
	p := place{name: name, dir: filepath.Join(top, name), state: filepath.Join("/run", name)}
	p.socket = filepath.Join(p.state, "cri.sock")
	return p, errors.Join(os.MkdirAll(p.dir, 0o755), os.MkdirAll(p.state, 0o755))
}

// begin starts a runtime, and what holds its namespaces while it is started again, pulls the image
// that its pods run, and returns it ready.
func begin(ctx context.Context, o *options, r *registry, c setup) (*server, error) {
	s := &server{setup: c, tools: o.tools, image: r.pod, group: "gantry-bench-" + strconv.Itoa(os.Getpid()) + "-" + c.name}
	hold := exec.Command(filepath.Join(s.tools, "enclose"), s.group, "sleep", "infinity")
	hold.Stderr = os.Stderr
	if err := hold.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	s.outer = hold
	if err := s.enter(ctx, r); err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

func (s *server) enter(ctx context.Context, r *registry) error {
	if err := s.enclosed(ctx); err != nil {
		return err
	}
	if err := r.join(ctx, s.outer.Process.Pid); err != nil {
		return fmt.Errorf("registry for %s: %w", s.name, err)
	}
	for _, h := range s.helpers {
		if err := s.help(ctx, h); err != nil {
			return err
		}
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	var err error
	if s.Cgroup, err = bench.OpenCgroup("/sys/fs/cgroup", s.group); err != nil {
		return err
	}
	for _, ref := range []string{r.pod, r.pause} {
		if _, err = s.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
			return fmt.Errorf("%s: pull %s: %w", s.name, ref, err)
		}
	}
	return s.called(ctx)
}

// called gives the runtime its name in reports.
func (s *server) called(ctx context.Context) error {
	s.Name, s.Network = s.label, s.network
	if s.label == bench.Subject || strings.HasPrefix(s.label, bench.Subject+",") {
		return nil
	}
	if s.version == "" {
		v, err := s.Runtime.Version(ctx, &cri.VersionRequest{})
		if err != nil {
			return err
		}
		s.version = v.RuntimeVersion
	}
	if end := strings.IndexAny(s.version, "+~ "); end > 0 { // how it was built
		s.version = s.version[:end]
	}
	s.Name += " " + strings.TrimPrefix(s.version, "v")
	return nil
}

// enclosed waits until the namespaces are made.
func (s *server) enclosed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", s.outer.Process.Pid))
		if strings.TrimSpace(string(data)) == "sleep" {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("namespaces of %s: %w", s.name, ctx.Err())
		}
	}
}

// inside is a command in the runtime's namespaces and cgroup.
func (s *server) inside(command ...string) *exec.Cmd {
	args := append([]string{"--target", strconv.Itoa(s.outer.Process.Pid), "--mount", "--net", "--cgroup"}, command...)
	return exec.Command("nsenter", args...)
}

// run starts a daemon of the runtime in its namespaces and cgroup. The channel is closed when it ends.
func (s *server) run(command []string) (ended <-chan struct{}, err error) {
	log, err := os.OpenFile(s.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	cmd := s.inside(append([]string{filepath.Join(s.tools, "join")}, command...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "CONTAINERS_REGISTRIES_CONF="+filepath.Join(s.dir, "registries.conf"),
		"PATH="+filepath.Dir(command[0])+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err = cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	end := make(chan struct{})
	go func() {
		defer close(end)
		_ = cmd.Wait()
	}()
	return end, nil
}

// within runs a daemon and waits for what ready waits for, while the daemon lives, a minute at most.
func (s *server) within(ctx context.Context, command []string, ready func(context.Context) error) error {
	ended, err := s.run(command)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, fmt.Errorf("%s is not ready after %s", s.name, startTime))
	defer cancel()
	go func() {
		select {
		case <-ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err = ready(ctx); err != nil {
		text, _ := os.ReadFile(s.log()) // what it said helps most, if it can be had
		return fmt.Errorf("%s: %s: %w\n%s", s.name, filepath.Base(command[0]), err, text[max(0, len(text)-3000):])
	}
	return nil
}

// start starts the runtime's server and waits until it says that it is ready.
func (s *server) start(ctx context.Context) error { return s.within(ctx, s.command, s.ready) }

// help starts a helper and waits until it listens.
func (s *server) help(ctx context.Context, h helper) error {
	return s.within(ctx, h.command, func(ctx context.Context) error {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			conn, err := (&net.Dialer{}).DialContext(ctx, "unix", h.socket)
			if err == nil {
				return conn.Close()
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	})
}

func (s *server) log() string { return filepath.Join(s.dir, "log") }

// ready waits until the runtime and its network are.
func (s *server) ready(ctx context.Context) error {
	var err error
	if s.Target == nil {
		s.Target, err = bench.Dial(ctx, s.name, s.socket)
	} else {
		err = s.Await(ctx)
	}
	if err != nil {
		return err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		r, err := s.Runtime.Status(ctx, &cri.StatusRequest{})
		if err != nil {
			return err
		}
		good := 0
		for _, c := range r.Status.Conditions {
			if c.Status && (c.Type == cri.RuntimeReady || c.Type == cri.NetworkReady) {
				good++
			}
		}
		if good == 2 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("not ready: %v: %w", r.Status.Conditions, context.Cause(ctx))
		}
	}
}

// restart kills the runtime's server, starts it again and returns how long it took until it was ready.
func (s *server) restart(ctx context.Context) (time.Duration, error) {
	if err := kill(s.Daemon); err != nil {
		return 0, err
	}
	began := time.Now()
	err := s.start(ctx)
	return time.Since(began), err
}

// end kills everything that the runtime has started and removes its cgroups. It may be called again.
func (s *server) end() error {
	if s.outer == nil {
		return nil
	}
	if s.Target != nil {
		if s.Cgroup != nil {
			s.used, _ = s.Cgroup.CPU() // for what the load is told from
		}
		_ = s.Target.Close()
	}
	_ = s.outer.Process.Kill()
	_ = s.outer.Wait()
	s.outer = nil
	return endGroup(s.group)
}

// cpu is the CPU time of the runtime and all it has run, also when it has ended.
func (s *server) cpu() (time.Duration, error) {
	if s.outer == nil {
		return s.used, nil
	}
	return s.Cgroup.CPU()
}
