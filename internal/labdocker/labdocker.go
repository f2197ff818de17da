// Package labdocker runs real Docker Engines for tests: Debian's 20.10, and the one of today that
// test/dockerd pins. Each has directories, sockets, a containerd and a cgroup of its own. What dockerd
// has at fixed paths (/run/docker) is private to the machine of internal/lab, which the test binary must
// run in. Only tests import it.
package labdocker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gantry/internal/lab"
)

// Version says which Docker Engine.
type Version string

// The engines there are.
const (
	Debian  Version = "20.10"
	Current Version = "current"
)

// Versions are all engines, for tests that hold for each of them.
func Versions() []Version { return []Version{Debian, Current} }

// FromEnvironment is what the variable DOCKERD names, Current when it is not set.
func FromEnvironment(t testing.TB) Version {
	t.Helper()
	switch v := Version(os.Getenv("DOCKERD")); v {
	case "":
		return Current
	case Debian, Current:
		return v
	default:
		t.Fatalf("DOCKERD=%s: must be one of %v", v, Versions())
		return ""
	}
}

// Store is where an engine of today keeps images; 20.10 has graph drivers only.
type Store string

// The stores there are.
const (
	Snapshotter Store = "containerd"
	GraphDriver Store = "graphdriver"
)

// Options are what a test wants of a Docker Engine.
type Options struct {
	Version Version // "" is Current
	// Network lets dockerd make its bridge and its firewall rules, as it does by default. Without it
	// there is neither a bridge nor a rule.
	Network bool
	// LiveRestore keeps containers running while dockerd does not.
	LiveRestore bool
	Store       Store    // "" leaves the choice to dockerd
	Flags       []string // further flags of dockerd
}

// startTime is how long a daemon may take until it answers, and until it has ended.
const startTime = 3 * time.Minute

// Daemon is a Docker Engine and everything it has.
type Daemon struct {
	Version Version
	Root    string // data and state that survive the daemon
	Run     string // sockets, pids and mounts of what runs
	Cgroup  string // parent of the containers' cgroups
	Log     string // dockerd's own log

	t          testing.TB
	args       []string
	dockerd    *process
	containerd *process
}

// Start starts a Docker Engine and waits until it answers. When the test ends, its containers and it are
// ended and everything below its directories is removed.
func Start(t testing.TB, o Options) *Daemon {
	t.Helper()
	if o.Version == "" {
		o.Version = Current
	}
	d := &Daemon{Version: o.Version, t: t, Cgroup: lab.Cgroup(t)}
	// Short: a unix socket's path has 107 bytes at most.
	for path, parent := range map[*string]string{&d.Root: os.TempDir(), &d.Run: "/run"} {
		dir, err := os.MkdirTemp(parent, "docker")
		if err != nil {
			t.Fatal(err)
		}
		*path = dir
	}
	d.Log = filepath.Join(d.Root, "dockerd.log")
	t.Cleanup(d.tearDown)
	// Containers in user namespaces must be able to pass through it.
	if err := os.Chmod(d.Root, 0o711); err != nil {
		t.Fatal(err)
	}
	// The machine's own configuration must not have a say.
	if err := os.WriteFile(filepath.Join(d.Root, "daemon.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.args = d.arguments(o)
	d.startContainerd()
	d.Restart()
	return d
}

func (d *Daemon) arguments(o Options) []string {
	args := []string{
		"--host", d.Endpoint(), "--data-root", filepath.Join(d.Root, "lib"), "--exec-root", filepath.Join(d.Run, "exec"),
		"--pidfile", filepath.Join(d.Run, "dockerd.pid"), "--config-file", filepath.Join(d.Root, "daemon.json"),
		"--containerd", d.containerdSocket(), "--cgroup-parent", d.Cgroup, "--userland-proxy-path", d.program("docker-proxy"),
	}
	if o.Version == Debian {
		args = append(args, "--oom-score-adjust", "0") // where it may not be lowered, dockerd ends
	}
	if !o.Network {
		args = append(args, "--bridge", "none", "--iptables=false", "--ip6tables=false")
	}
	if o.LiveRestore {
		args = append(args, "--live-restore")
	}
	if o.Store != "" && o.Version == Current {
		args = append(args, "--feature", fmt.Sprintf("containerd-snapshotter=%t", o.Store == Snapshotter))
	}
	return append(args, o.Flags...)
}

// Socket is the path that the API answers at.
func (d *Daemon) Socket() string { return filepath.Join(d.Run, "docker.sock") }

// Endpoint is the API's address, as DOCKER_HOST has it.
func (d *Daemon) Endpoint() string { return "unix://" + d.Socket() }

func (d *Daemon) containerdSocket() string { return filepath.Join(d.Run, "containerd.sock") }

// program is the path of one of the engine's programs.
func (d *Daemon) program(name string) string {
	d.t.Helper()
	if d.Version == Debian {
		for _, dir := range []string{"/usr/sbin", "/usr/bin"} {
			path := filepath.Join(dir, name)
			if _, err := os.Stat(path); err == nil {
				return path
			}
		}
		d.t.Fatalf("%s is not there (Debian: docker.io): run `hack/install-deps docker` first", name)
	}
	tools := os.Getenv("GANTRY_TOOLS")
	if tools == "" {
		top, err := exec.CommandContext(d.t.Context(), "go", "list", "-m", "-f", "{{.Dir}}").Output()
		if err != nil {
			d.t.Fatalf("find the top of the module: %v", err)
		}
		tools = filepath.Join(strings.TrimSpace(string(top)), ".cache", "bin")
	}
	path := filepath.Join(tools, "docker", name)
	if _, err := os.Stat(path); err != nil {
		d.t.Fatalf("%s is not there: run `make docker-tools` first", path)
	}
	return path
}

// Restart starts dockerd, which must not be running, and waits until it answers.
func (d *Daemon) Restart() {
	d.t.Helper()
	_ = os.Remove(filepath.Join(d.Run, "dockerd.pid")) // left by one that was killed
	d.dockerd = d.start(d.Log, d.program("dockerd"), d.args...)
	d.await(d.dockerd, "http://docker/_ping", d.Socket())
}

// Kill sends SIGKILL to dockerd and waits until it is gone. Its containers and its containerd go on.
func (d *Daemon) Kill() { d.dockerd.end(d.t, syscall.SIGKILL) }

// Stop sends SIGTERM to dockerd and waits until it is gone. Without LiveRestore the containers end first.
func (d *Daemon) Stop() { d.dockerd.end(d.t, syscall.SIGTERM) }

// Hang stops dockerd in its tracks until Resume: it accepts connections and answers nothing. It returns when all
// threads stand: one that runs on for a moment may take up the next request, and leave it half done.
func (d *Daemon) Hang() {
	d.t.Helper()
	d.dockerd.signal(d.t, syscall.SIGSTOP)
	for end := time.Now().Add(startTime); !stopped(d.Pid()); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			d.t.Fatal("dockerd does not stop")
		}
	}
}

// stopped says whether all threads of a process have stopped (proc_pid_stat(5)).
func stopped(pid int) bool {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			return false
		}
		if _, fields, found := bytes.Cut(stat, []byte(") ")); !found || fields[0] != 'T' {
			return false
		}
	}
	return len(stats) > 0
}

// Resume ends what Hang began.
func (d *Daemon) Resume() { d.dockerd.signal(d.t, syscall.SIGCONT) }

// Pid is dockerd's.
func (d *Daemon) Pid() int { return d.dockerd.cmd.Process.Pid }

// ContainerdPid is that of the containerd behind it.
func (d *Daemon) ContainerdPid() int { return d.containerd.cmd.Process.Pid }

// Client speaks HTTP to the daemon's socket whatever host a URL names.
func (d *Daemon) Client() *http.Client { return clientOf(d.Socket()) }

func clientOf(socket string) *http.Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
}

// Docker runs Debian's command line against the engine and returns its standard output; it must exit 0.
func (d *Daemon) Docker(args ...string) string {
	d.t.Helper()
	cmd := d.DockerCommand(context.Background(), args...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		d.t.Fatalf("docker %s: %v\n%s%s", strings.Join(args, " "), err, out, complaint.String())
	}
	return string(out)
}

// DockerCommand is Debian's command line against the engine, not started.
func (d *Daemon) DockerCommand(ctx context.Context, args ...string) *exec.Cmd {
	config := filepath.Join(d.Root, "client") // not root's

	return exec.CommandContext(ctx, "/usr/bin/docker", append([]string{"--config", config, "--host", d.Endpoint()}, args...)...)
}

// LogTail is the end of dockerd's log.
func (d *Daemon) LogTail() string { return tail(d.Log) }

func tail(path string) string {
	const most = 8 << 10
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-most):])
}

// await waits until url answers on socket.
func (d *Daemon) await(p *process, url, socket string) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	client := clientOf(socket)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			d.t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-tick.C:
		case <-p.ended:
			d.t.Fatalf("dockerd ended: %v\n%s", p.cmd.ProcessState, tail(p.log))
		case <-ctx.Done():
			d.t.Fatalf("dockerd does not answer: %v\n%s", err, tail(p.log))
		}
	}
}
