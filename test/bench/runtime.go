package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
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
	place
	command []string
	tools   string // directory of enclose and join
	image   string // what its pods run
	group   string // its cgroup, in every hierarchy
	outer   *exec.Cmd
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
func begin(ctx context.Context, tools string, p place, command ...string) (*server, error) {
	s := &server{place: p, tools: tools, command: command, group: "gantry-bench-" + strconv.Itoa(os.Getpid()) + "-" + p.name}
	hold := exec.Command(filepath.Join(tools, "enclose"), s.group, "sleep", "infinity")
	hold.Stderr = os.Stderr
	if err := hold.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	s.outer = hold
	if err := s.enter(ctx); err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, nil
}

func (s *server) enter(ctx context.Context) error {
	if err := s.enclosed(ctx); err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	var err error
	if s.Cgroup, err = bench.OpenCgroup("/sys/fs/cgroup", s.group); err != nil {
		return err
	}
	return s.pull(ctx)
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

// start starts the runtime's server and waits until it says that it is ready.
func (s *server) start(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := s.inside(append([]string{filepath.Join(s.tools, "join")}, s.command...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "CONTAINERS_REGISTRIES_CONF="+filepath.Join(s.dir, "registries.conf"),
		"PATH="+filepath.Dir(s.command[0])+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err = cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, fmt.Errorf("%s is not ready after %s", s.name, startTime))
	defer cancel()
	go func() {
		select {
		case <-ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err = s.ready(ctx); err != nil {
		text, _ := os.ReadFile(log.Name()) // what it said helps most, if it can be had
		return fmt.Errorf("%s: %w\n%s", s.name, err, text[max(0, len(text)-3000):])
	}
	return nil
}

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

// pull gets the images from a registry in the runtime's network.
func (s *server) pull(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := s.inside(self, "-registry")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err = cmd.Start(); err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	lines := bufio.NewScanner(out)
	for range images() {
		if !lines.Scan() {
			return fmt.Errorf("the registry does not serve: %w", lines.Err())
		}
		ref := lines.Text()
		if _, err = s.Images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
			return fmt.Errorf("%s: pull %s: %w", s.name, ref, err)
		}
		if s.image == "" {
			s.image = ref
		}
	}
	return nil
}

// restart kills the runtime's server, starts it again and returns how long it took until it was ready.
func (s *server) restart(ctx context.Context) (time.Duration, error) {
	if err := kill(ctx, s.Daemon); err != nil {
		return 0, err
	}
	began := time.Now()
	err := s.start(ctx)
	return time.Since(began), err
}

// kill kills a process that need not be a child and waits until it is gone.
func kill(ctx context.Context, pid int) error {
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %d: %w", pid, err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// end kills everything that the runtime has started and removes its cgroups.
func (s *server) end() error {
	if s.Target != nil {
		_ = s.Target.Close()
	}
	_ = s.outer.Process.Kill()
	_ = s.outer.Wait()
	return endGroup(s.group)
}
