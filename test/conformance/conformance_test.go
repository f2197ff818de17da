// Package conformance_test runs critest against the real server. `make conformance` builds what it
// needs and says what to run by the environment.
package conformance_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/lab"
	"gantry/internal/labdocker"
	"gantry/test/conformance/report"
	"gantry/test/conformance/standin"
	"gantry/test/leftovers"
	"gantry/test/node"
)

func TestMain(m *testing.M) { lab.Main(m) }

// run is what was asked for.
type run struct {
	engine, runtime, network string
	dockerd                  labdocker.Version // with engine "docker"
	streams                  string            // "spdy" or "websocket"
	focus                    string            // regular expression of specs; "" is all
	out                      string            // directory of the reports
}

func fromEnvironment(t *testing.T) run {
	t.Helper()
	r := run{
		engine: oneOf(t, "ENGINE", "native", "docker"), runtime: oneOf(t, "RUNTIME", "crun", "runc"),
		network: oneOf(t, "NETWORK", "builtin", "cni"), streams: oneOf(t, "STREAMS", "spdy", "websocket"),
		focus: os.Getenv("FOCUS"), out: os.Getenv("OUT"),
	}
	if r.engine == "docker" {
		r.dockerd = labdocker.FromEnvironment(t)
		r.runtime = "docker" // the handler of that name; dockerd chooses the OCI runtime
	}
	if r.out == "" {
		t.Fatal("OUT names no directory: run `make conformance`")
	}
	return r
}

// oneOf is the value of a variable, which must be among known; the first of them when it is not set.
func oneOf(t *testing.T, variable string, known ...string) string {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		return known[0]
	}
	for _, k := range known {
		if value == k {
			return value
		}
	}
	t.Fatalf("%s=%s: must be one of %v", variable, value, known)
	return ""
}

func (r run) name() string {
	if r.engine == "docker" {
		return r.engine + "-" + string(r.dockerd) + "-" + r.network + "-" + r.streams
	}
	return r.engine + "-" + r.runtime + "-" + r.network + "-" + r.streams
}

// document says why specs do not pass.
func (r run) document() string {
	switch r.dockerd {
	case labdocker.Current:
		return "conformance-docker.md"
	case labdocker.Debian:
		return "conformance-docker-20.10.md"
	}
	return "conformance.md"
}

// arguments of critest.
func (r run) arguments(n *node.Node, junit string) []string {
	args := []string{
		"-runtime-endpoint", n.Endpoint(), "-runtime-handler", r.runtime,
		"-ginkgo.junit-report", junit, "-ginkgo.no-color",
	}
	if r.streams == "websocket" {
		args = append(args, "-websocket-exec", "-websocket-attach", "-websocket-portforward")
	}
	if r.focus != "" {
		args = append(args, "-ginkgo.focus", r.focus)
	}
	return args
}

// start starts a server whose log is kept, and the registry of the stand-ins.
func (r run) start(t *testing.T, base string) *node.Node {
	t.Helper()
	o, listen := node.Options{Runtime: r.runtime, Network: r.network}, ""
	if r.engine == "docker" {
		o.Runtime, listen = "", publicAddress
		o.Flags = []string{"--engine", "docker", "--docker-endpoint", r.startDocker(t, base).Endpoint()}
	}
	n := node.Start(t, o)
	t.Cleanup(func() { keep(t, n.Log, base+".server.log") })
	// Containers in user namespaces must be able to pass through them.
	for _, dir := range []string{n.Root, n.State} {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	images, err := standin.Serve(standin.Programs{
		Busybox: node.Tool(t, "busybox"), NoNewPrivs: node.Tool(t, "nonewprivs"),
	}, filepath.Join(n.Root, "certs.d"), listen)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(images.Close)
	return n
}

// publicAddress is where the stand-ins of public registries are when their names lead there: dockerd maps
// no registry but Docker Hub's to another.
const publicAddress = "127.0.0.2:80"

// startDocker starts a Docker Engine with its network, as everybody has it, to which the names of the
// registries lead to the stand-ins.
func (r run) startDocker(t *testing.T, base string) *labdocker.Daemon {
	t.Helper()
	names := "127.0.0.1 localhost\n127.0.0.2 " + strings.Join(standin.Hosts(), " ") + "\n"
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte(names), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(hosts, "/etc/hosts", "", unix.MS_BIND, ""); err != nil { // of the lab's machine alone
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount("/etc/hosts", 0); err != nil {
			t.Error(err)
		}
	})
	o := labdocker.Options{Version: r.dockerd, Network: true, LiveRestore: true}
	for _, host := range standin.Hosts() {
		o.Flags = append(o.Flags, "--insecure-registry", host)
	}
	d := labdocker.Start(t, o)
	t.Cleanup(func() { keep(t, d.Log, base+".dockerd.log") })
	return d
}

// TestCritest passes when every spec passes or has its cause written down.
func TestCritest(t *testing.T) {
	r := fromEnvironment(t)
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(r.out, r.name())
	n := r.start(t, base)
	r.leavesNothing(t, n)
	began := time.Now()
	critestError := critest(t.Context(), base+".log", node.Tool(t, "critest"), append(r.arguments(n, base+".xml"), "-ginkgo.v"))
	took := time.Since(began)

	specs := read(t, base+".xml", report.Parse)
	causes := read(t, filepath.Join("..", "..", "docs", r.document()), report.Causes)
	unexplained := report.Write(os.Stdout, specs, causes)
	fmt.Printf("%s, %v; reports: %s.{xml,log,server.log}\n", r.name(), took.Round(time.Second), base)
	if len(specs) == 0 {
		t.Errorf("no spec ran: %v", critestError)
	}
	for _, name := range unexplained {
		t.Errorf("does not pass, and docs/%s does not say why: %s", r.document(), name)
	}
}

// leavesNothing makes the test fail if it ends with more of pods on the machine than there is now. What
// a node makes with its first pod and keeps (a bridge, firewall tables) is made before.
func (r run) leavesNothing(t *testing.T, n *node.Node) {
	t.Helper()
	warm := n.Sandbox("warm")
	// The portmap plugin keeps its chains from the first host port on.
	warm.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 12000}}
	pod, _ := n.Launch(warm, node.Container("warm", n.Pull(node.Busybox(t)), "true"))
	n.RemovePod(pod)
	if r.engine == "docker" { // dockerd keeps a mount of the node's network namespace
		n.RemovePod(n.RunPod(node.HostNetwork(n.Sandbox("warm-host"))))
	}
	// critest does not remove all images that it pulls.
	scope := leftovers.Scope{
		Dirs:    []string{filepath.Join(n.Lib, "journal"), filepath.Join(n.Lib, "images", "containers"), n.State, n.Leases},
		Cgroups: []string{n.Cgroup},
	}
	before, err := leftovers.Take(t.Context(), scope)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := leftovers.Settle(n.Context(), scope, before, leftovers.Patience)
		if err != nil {
			t.Error(err)
		}
		for _, line := range left {
			// critest leaves the mounts of its own that a spec which fails was about.
			if !strings.Contains(line, os.TempDir()+"/test") {
				t.Errorf("left behind: %s", line)
			}
		}
	})
}

// critest runs it and returns its error, which is one also where a spec failed.
func critest(ctx context.Context, log, binary string, args []string) error {
	out, err := os.Create(log)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd.Run()
}

// read reads a file with parse.
func read[T any](t *testing.T, path string, parse func(io.Reader) (T, error)) T {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	value, err := parse(f)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return value
}

func keep(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	if err != nil {
		t.Error(err)
	}
}
