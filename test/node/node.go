// Package node runs real servers for tests: the binaries that `make build` leaves, each server with
// a root, a state directory and a cgroup of its own, inside the machine that internal/lab made.
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/lab"
	"gantry/test/leftovers"
)

// startTime is how long a server may take until it answers.
const startTime = time.Minute

// Options are what a test wants of a server.
type Options struct {
	Runtime string   // default runtime: "crun" or "runc"; "" leaves the choice to the server
	Network string   // "cni", "builtin" or "" for builtin
	CNIConf string   // directory of CNI configurations; "" makes one with Debian's bridge plugin
	Flags   []string // further flags of gantry serve
	Bin     string   // directory of gantry and gantry-keeper; "" is where `make build` leaves them
}

// Node is a server and everything it may touch.
type Node struct {
	Root   string // of this node; everything below but State is in it
	Lib    string // the server's --root
	State  string // the server's --state
	Leases string // host-local's
	Logs   string // pod log directories go below it; the kubelet removes them, not the server
	Cgroup string // parent of every pod's cgroup
	Log    string // the server's own log

	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient

	t     testing.TB
	bin   string
	args  []string
	serve *exec.Cmd
	ended chan struct{} // closed when serve was waited for
}

// Binary returns the path of one of the project's programs, built by the Makefile.
func Binary(t testing.TB, name string) string {
	t.Helper()
	return find(t, "GANTRY_BIN", "bin", name, "make build")
}

// Tool returns the path of a program the tests use, built by the Makefile.
func Tool(t testing.TB, name string) string {
	t.Helper()
	return find(t, "GANTRY_TOOLS", ".cache/bin", name, "make tools")
}

func find(t testing.TB, env, dir, name, target string) string {
	t.Helper()
	base := os.Getenv(env)
	if base == "" {
		top, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}").Output()
		if err != nil {
			t.Fatalf("find the top of the module: %v", err)
		}
		base = filepath.Join(strings.TrimSpace(string(top)), dir)
	}
	path := filepath.Join(base, name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is not there: run `%s` first", path, target)
	}
	return path
}

// Start starts a server and waits until it answers. When the test ends, the server and its keeper
// are stopped and everything below its directories is removed.
func Start(t testing.TB, o Options) *Node {
	t.Helper()
	n := Prepare(t, o)
	n.Restart()
	return n
}

// Prepare makes what Start makes and starts nothing.
func Prepare(t testing.TB, o Options) *Node {
	t.Helper()
	n := &Node{t: t, Cgroup: lab.Cgroup(t), bin: cmp.Or(o.Bin, filepath.Dir(Binary(t, "gantry")))}
	n.Root = tempDir(t, "/tmp", "gantry-root")
	n.State = tempDir(t, "/run", "g") // short: a unix socket's path has 107 bytes at most
	n.Lib = filepath.Join(n.Root, "lib")
	n.Leases = filepath.Join(n.Root, "leases")
	n.Logs = filepath.Join(n.Root, "logs")
	n.Log = filepath.Join(n.Root, "server.log")
	if o.Network == "" {
		o.Network = "builtin"
	}
	if o.CNIConf == "" {
		o.CNIConf = filepath.Join(n.Root, "net.d")
		WriteCNI(t, o.CNIConf, BridgeConf(n.Leases))
	}
	n.args = append([]string{
		"serve", "--listen", n.Endpoint(), "--root", n.Lib, "--state", n.State,
		"--network", o.Network, "--cni-conf-dir", o.CNIConf, "--cni-bin-dir", "/usr/lib/cni",
		"--certs-dir", filepath.Join(n.Root, "certs.d"), "--streaming-listen", "127.0.0.1:0", "--log-level", "debug",
		"--nri-socket", n.NRISocket(), "--nri-plugin-dir", filepath.Join(n.Root, "nri"), "--nri-config-dir", filepath.Join(n.Root, "nri.d"),
		"--nri-registration-timeout", "1m", "--nri-request-timeout", "1m", // a slow machine is not a plugin that hangs
	}, o.Flags...)
	if o.Runtime != "" {
		n.args = append(n.args, "--default-runtime", o.Runtime)
	}
	conn := n.dial()
	t.Cleanup(func() {
		conn.Close()
		n.tearDown()
	})
	return n
}

// Attach returns the node of a server that somebody else starts and ends and that runs, whose state
// directory is state. Pods that choose no cgroup parent get one below cgroupParent.
func Attach(t testing.TB, state, cgroupParent string) *Node {
	t.Helper()
	n := &Node{t: t, State: state, Cgroup: cgroupParent, Root: tempDir(t, "/tmp", "gantry-root")}
	n.Logs = filepath.Join(n.Root, "logs")
	conn := n.dial()
	t.Cleanup(func() {
		conn.Close()
		if err := os.RemoveAll(n.Root); err != nil {
			t.Logf("remove %s: %v", n.Root, err)
		}
	})
	return n
}

// dial makes the clients of the node's server, which need not run yet.
func (n *Node) dial() *grpc.ClientConn {
	n.t.Helper()
	conn, err := grpc.NewClient(n.Endpoint(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, MaxDelay: 100 * time.Millisecond, Multiplier: 2},
			MinConnectTimeout: startTime, // a slow machine is not a dead server
		}))
	if err != nil {
		n.t.Fatalf("client of %s: %v", n.Endpoint(), err)
	}
	n.Runtime = runtimeapi.NewRuntimeServiceClient(conn)
	n.Images = runtimeapi.NewImageServiceClient(conn)
	return conn
}

// Endpoint is the server's address.
func (n *Node) Endpoint() string { return "unix://" + filepath.Join(n.State, "gantry.sock") }

// NRISocket is where NRI plugins connect.
func (n *Node) NRISocket() string { return filepath.Join(n.State, "nri.sock") }

// Scope is everything of this node that a pod could leave something in.
func (n *Node) Scope() leftovers.Scope {
	return leftovers.Scope{
		Dirs:    []string{n.Lib, n.State, n.Leases},
		Cgroups: []string{n.Cgroup},
	}
}

// Restart starts the server, which must not be running, and waits until it answers.
func (n *Node) Restart() {
	n.t.Helper()
	n.start()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	for {
		// A call may still go out on the connection to the server before, which is dead and not known
		// to be: its Unavailable says nothing of the new one.
		_, err := n.Runtime.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
		if err == nil {
			return
		}
		if ctx.Err() != nil || status.Code(err) != codes.Unavailable {
			n.t.Fatalf("server does not answer: %v\n%s", err, n.LogTail())
		}
		select {
		case <-n.ended:
			n.t.Fatalf("server ended: %v\n%s", err, n.LogTail())
		default:
		}
	}
}

// Answers waits until the server answers that somebody else has started again: a call may go out on the connection to
// the one before, as long as nobody here has heard of its end, and be Unavailable.
func (n *Node) Answers() {
	n.t.Helper()
	n.Eventually("the server answers", func() bool {
		_, err := n.Runtime.Version(n.Context(), &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
		return err == nil
	})
}

// Starts starts the server, which must not be running, and says whether it answers; if not, it has ended.
func (n *Node) Starts() bool {
	n.t.Helper()
	n.start()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	ended := n.ended
	go func() {
		select {
		case <-ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	for ctx.Err() == nil {
		if _, err := n.Runtime.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true)); err == nil {
			return true
		}
	}
	select {
	case <-ended:
		n.serve = nil
	default:
		n.t.Fatalf("the server neither answers nor ends\n%s", n.LogTail())
	}
	return false
}

// T is the test that the node's failures belong to.
func (n *Node) T() testing.TB { return n.t }

// ServeCommand is the server's command, not started.
func (n *Node) ServeCommand() *exec.Cmd {
	return exec.Command(filepath.Join(n.bin, "gantry"), n.args...)
}

func (n *Node) start() {
	n.t.Helper()
	log, err := os.OpenFile(n.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	cmd := n.ServeCommand()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a ^C is for the test, not for the server
	if err := cmd.Start(); err != nil {
		n.t.Fatalf("start server: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	n.serve, n.ended = cmd, ended
}

// Kill sends SIGKILL to the server and waits until it is gone.
func (n *Node) Kill() { n.end(syscall.SIGKILL) }

// Runs says whether the server that was started has not ended.
func (n *Node) Runs() bool {
	select {
	case <-n.ended:
		return false
	default:
		return n.serve != nil
	}
}

// Stop sends SIGTERM to the server and waits until it is gone.
func (n *Node) Stop() { n.end(syscall.SIGTERM) }

// Pid is the server's.
func (n *Node) Pid() int { return n.serve.Process.Pid }

func (n *Node) end(sig syscall.Signal) {
	n.t.Helper()
	if n.serve == nil {
		return
	}
	if err := n.serve.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		n.t.Fatalf("%v to the server: %v", sig, err)
	}
	select {
	case <-n.ended:
	case <-time.After(startTime):
		n.t.Fatalf("the server outlived %v\n%s", sig, n.LogTail())
	}
	n.serve = nil
}

// LogTail is the end of the server's log.
func (n *Node) LogTail() string {
	data, err := os.ReadFile(n.Log)
	if err != nil {
		return err.Error()
	}
	const most = 6000
	if len(data) > most {
		data = data[len(data)-most:]
	}
	return "--- server log\n" + string(data)
}

// tearDown ends the server, the keeper and whatever the test left, so that the next test starts on
// a clean machine.
func (n *Node) tearDown() {
	if n.t.Failed() {
		n.t.Log(n.LogTail())
	}
	n.end(syscall.SIGKILL)
	n.killKeeper()
	KillCgroup(n.Cgroup)
	for _, dir := range []string{n.Root, n.State} {
		unmountBelow(dir)
		if err := os.RemoveAll(dir); err != nil {
			n.t.Logf("remove %s: %v", dir, err)
		}
	}
}

func tempDir(t testing.TB, parent, prefix string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		t.Fatal(fmt.Errorf("temporary directory: %w", err))
	}
	return dir
}
