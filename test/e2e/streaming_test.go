package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	clientexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"gantry/test/node"
)

// idler is a container that does nothing until it is told to end.
func idler(ref string) *runtimeapi.ContainerConfig {
	return node.Container("idler", ref, "sh", "-c", "trap exit TERM; while :; do sleep 1; done")
}

// transports are the protocols that a direct client chooses from.
var transports = map[string]func(*rest.Config, *url.URL) (remotecommand.Executor, error){
	"spdy": func(c *rest.Config, u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewSPDYExecutor(c, http.MethodPost, u)
	},
	"websocket": func(c *rest.Config, u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(c, http.MethodGet, u.String())
	},
}

func executor(t *testing.T, n *node.Node, transport string, req *runtimeapi.ExecRequest) remotecommand.Executor {
	t.Helper()
	r, err := n.Runtime.Exec(n.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(r.Url)
	if err != nil {
		t.Fatal(err)
	}
	e, err := transports[transport](&rest.Config{Host: u.Host}, u)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestExecOverEveryTransport(t *testing.T) {
	for _, i := range opposites {
		t.Run(environments[i].name, func(t *testing.T) { execOverEveryTransport(t, environments[i].options) })
	}
}

func execOverEveryTransport(t *testing.T, o node.Options) {
	const size = 100 << 20
	n := node.Start(t, o)
	ref := warm(t, n)
	leavesNothing(t, n)
	pod, container := n.Launch(n.Sandbox("exec"), idler(ref))
	for transport := range transports {
		t.Run(transport, func(t *testing.T) {
			contains(t, "crictl exec", n.Crictl("exec", "--transport", transport, container, "echo", "two"), "two")
			cmd := n.CrictlCommand(n.Context(), "exec", "--transport", transport, "-it", container, "sh")
			if seen := typeInto(t, cmd, showSize); !strings.Contains(seen, "size=33 77") {
				t.Errorf("exec -it shows %q", seen)
			}

			in, out := sha256.New(), sha256.New()
			var errOut bytes.Buffer
			src := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{}), size), in)
			err := executor(t, n, transport, &runtimeapi.ExecRequest{
				ContainerId: container, Cmd: []string{"sh", "-c", "cat; echo done >&2; exit 9"}, Stdin: true, Stdout: true, Stderr: true,
			}).StreamWithContext(n.Context(), remotecommand.StreamOptions{Stdin: src, Stdout: out, Stderr: &errOut})
			var code clientexec.CodeExitError
			if !errors.As(err, &code) || code.Code != 9 || errOut.String() != "done\n" || !bytes.Equal(in.Sum(nil), out.Sum(nil)) {
				t.Errorf("%v, stderr %q, or other bytes came back than went", err, errOut.String())
			}
		})
	}
	n.RemovePod(pod)
}

// Two hundred commands at once, of which every second loses its client: their processes end, and
// server and keeper have no more descriptors than before.
func TestTwoHundredExecsOfWhichHalfVanish(t *testing.T) {
	const clients = 200
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	leavesNothing(t, n)
	pod, container := n.Launch(n.Sandbox("crowd"), idler(ref))
	n.Exec(container, "true")
	holder, worker := n.Keeper()
	pids := []int{n.Pid(), holder, worker}
	before := openFiles(t, pids)

	ctx, vanish := context.WithCancel(n.Context())
	defer vanish()
	var began, ended sync.WaitGroup
	release := make(chan struct{})
	for i := range clients {
		stays := i%2 == 0
		transport := "spdy"
		if i%4 < 2 {
			transport = "websocket"
		}
		e := executor(t, n, transport, &runtimeapi.ExecRequest{
			ContainerId: container, Cmd: []string{"sh", "-c", "echo up; cat"}, Stdin: true, Stdout: true,
		})
		began.Add(1)
		ended.Go(func() {
			in, out := io.Pipe()
			defer func() { _ = in.Close() }()
			seen := &first{begin: began.Done}
			c := n.Context()
			if stays {
				go func() {
					<-release
					_, _ = io.WriteString(out, "more")
					_ = out.Close()
				}()
			} else {
				c = ctx
			}
			err := e.StreamWithContext(c, remotecommand.StreamOptions{Stdin: in, Stdout: seen})
			seen.once.Do(func() {
				t.Errorf("command %d never began: %v", i, err)
				began.Done()
			})
			if stays && (err != nil || seen.buf.String() != "up\nmore") {
				t.Errorf("%v, %q", err, seen.buf.String())
			}
		})
	}
	began.Wait()
	vanish()
	n.Eventually("the processes of those who left have ended", func() bool { return len(cats()) == clients/2 })
	close(release)
	ended.Wait()
	n.Eventually("every process has ended", func() bool { return len(cats()) == 0 })
	n.Eventually("descriptors are as many as before", func() bool { return openFiles(t, pids) <= before })
	n.RemovePod(pod)
}

// first says when the first byte came.
type first struct {
	buf   bytes.Buffer
	once  sync.Once
	begin func()
}

func (f *first) Write(p []byte) (int, error) {
	f.once.Do(f.begin)
	return f.buf.Write(p)
}

func cats() []node.Process {
	return node.Processes(func(p node.Process) bool { return len(p.Command) == 1 && p.Command[0] == "cat" })
}

func openFiles(t *testing.T, pids []int) (sum int) {
	t.Helper()
	for _, pid := range pids {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		sum += len(list)
	}
	return sum
}

// pages serves one page over IPv4 only, and another over IPv6 only.
const pages = `mkdir -p /tmp/www && dd if=/dev/urandom of=/tmp/www/big bs=1M count=64 2>/dev/null
sha256sum </tmp/www/big; httpd -p 127.0.0.1:8080 -h /tmp/www; httpd -p '[::1]:8081' -h /tmp/www; exec sleep 100000`

func TestPortForwardOverBothFamilies(t *testing.T) {
	for _, i := range opposites {
		t.Run(environments[i].name, func(t *testing.T) { portForwardOverBothFamilies(t, environments[i].options) })
	}
}

func portForwardOverBothFamilies(t *testing.T, o node.Options) {
	n := node.Start(t, o)
	ref := warm(t, n)
	leavesNothing(t, n)
	pod, container := n.Launch(n.Sandbox("web"), node.Container("web", ref, "sh", "-c", pages))
	var sum string
	n.Eventually("the page is there", func() bool {
		sum = regexp.MustCompile("[0-9a-f]{64}").FindString(n.ReadLog(container))
		return sum != ""
	})
	conn := forwardConnection(t, n, pod)
	id := 0 // one of its own for each try: the server may still be at the last
	for _, port := range []int{8080, 8081} {
		n.Eventually(fmt.Sprintf("port %d answers", port), func() bool {
			id++
			got, _ := fetch(t, conn, port, id)
			return got == sum
		})
	}
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			if got, refused := fetch(t, conn, 8080+i%2, 1_000_000+i); got != sum {
				t.Errorf("connection %d got something else: %s", i, refused)
			}
		})
	}
	all.Wait()
	if _, refused := fetch(t, conn, 9999, 2_000_000); !strings.Contains(refused, "connection refused") {
		t.Errorf("a port that nobody listens on: %q", refused)
	}
	if got, refused := fetch(t, conn, 8080, 2_000_001); got != sum {
		t.Errorf("after a port that nobody listens on: %q", refused)
	}
	n.RemovePod(pod)
}

func forwardConnection(t *testing.T, n *node.Node, pod string) httpstream.Connection {
	t.Helper()
	r, err := n.Runtime.PortForward(n.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	rt, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(n.Context(), http.MethodPost, r.Url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, "portforward.k8s.io")
	res, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	conn, err := rt.NewConnection(res)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// fetch gets the big file through a connection of its own and returns its sum, or why there was none.
func fetch(t *testing.T, c httpstream.Connection, port, id int) (sum, refused string) {
	h := http.Header{}
	h.Set("port", fmt.Sprint(port))
	h.Set("requestID", fmt.Sprint(id))
	h.Set("streamType", "error")
	errs, err := c.CreateStream(h)
	if err != nil {
		t.Error(err)
		return "", ""
	}
	h.Set("streamType", "data")
	data, err := c.CreateStream(h)
	if err != nil {
		t.Error(err)
		return "", ""
	}
	defer func() { _ = data.Reset() }()
	_, _ = io.WriteString(data, "GET /big HTTP/1.0\r\n\r\n")
	body := sha256.New()
	var head [4]byte
	for string(head[:]) != "\r\n\r\n" {
		copy(head[:], head[1:])
		if _, err = io.ReadFull(data, head[3:]); err != nil {
			break
		}
	}
	_, _ = io.Copy(body, data)
	_ = data.Reset()
	why, _ := io.ReadAll(errs)
	return fmt.Sprintf("%x", body.Sum(nil)), string(why)
}

func TestCrictlForwardsPortsOverEveryTransport(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	pod, container := n.Launch(n.Sandbox("web"), node.Container("web", ref, "sh", "-c", server))
	t.Cleanup(func() { n.RemovePod(pod) })
	awaitPage(n, container)
	for transport := range transports {
		t.Run(transport, func(t *testing.T) { forwardPort(t, n, "--transport", transport, pod) })
	}
}

func TestExecSyncKeepsItsBounds(t *testing.T) {
	const metrics = "127.0.0.1:19090"
	n := node.Start(t, node.Options{Flags: []string{"--metrics-listen", metrics}})
	ref := warm(t, n)
	leavesNothing(t, n)
	pod, container := n.Launch(n.Sandbox("sync"), idler(ref))
	run := func(timeout int64, script string) (*runtimeapi.ExecSyncResponse, error) {
		return n.Runtime.ExecSync(n.Context(),
			&runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: []string{"sh", "-c", script}, Timeout: timeout},
			grpc.MaxCallRecvMsgSize(16<<20)) // as the kubelet
	}
	sleepers := func(seconds string) int {
		return len(node.Processes(func(p node.Process) bool { return strings.Join(p.Command, " ") == "sleep "+seconds }))
	}

	// 20 MiB on both streams together do not fit; the process ends well all the same.
	r, err := run(60, "dd if=/dev/zero bs=1M count=10; dd if=/dev/zero bs=1M count=10 >&2; exit 3")
	if err != nil || r.ExitCode != 3 || len(r.Stdout)+len(r.Stderr) >= 16<<20 || len(r.Stdout)+len(r.Stderr) < 15<<20 {
		t.Errorf("%v, exit code %d, %d and %d bytes", err, r.GetExitCode(), len(r.GetStdout()), len(r.GetStderr()))
	}
	if page := get(t, "http://"+metrics+"/metrics"); !strings.Contains(page, "\ngantry_exec_sync_discarded_bytes_total 4.") {
		t.Error("the metric does not count what was discarded")
	}
	contains(t, "the log", node.ReadFile(t, n.Log), "output of ExecSync cut")

	began := time.Now()
	if r, err = run(0, "sleep 77771 & echo ready"); err != nil || string(r.Stdout) != "ready\n" {
		t.Errorf("with a child that keeps the pipe: %v, %q", err, r.GetStdout())
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("with a child that keeps the pipe it took %s", took)
	}
	// It may still be on its way from the fork to its program.
	n.Eventually("the child of a command that ended lives on", func() bool { return sleepers("77771") == 1 })
	if _, err = run(1, "sleep 77772 & sleep 77773"); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("past its deadline: %v", err)
	}
	n.Eventually("what a command started has ended with its deadline", func() bool { return sleepers("77772")+sleepers("77773") == 0 })
	n.RemovePod(pod)
}

// A direct client that trusts the certificate is served over TLS.
func TestStreamingAddressWithACertificate(t *testing.T) {
	dir := t.TempDir()
	cert, key := dir+"/cert.pem", dir+"/key.pem"
	out, err := exec.CommandContext(t.Context(), "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
		"-days", "1", "-subj", "/CN=streams", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n := node.Start(t, node.Options{Flags: []string{"--streaming-listen", "localhost:0", "--streaming-tls-cert", cert, "--streaming-tls-key", key}})
	ref := warm(t, n)
	pod, container := n.Launch(n.Sandbox("tls"), idler(ref))
	t.Cleanup(func() { n.RemovePod(pod) })
	for transport, connect := range transports {
		t.Run(transport, func(t *testing.T) {
			r, err := n.Runtime.Exec(n.Context(), &runtimeapi.ExecRequest{ContainerId: container, Cmd: []string{"echo", "safe"}, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			u, err := url.Parse(r.Url)
			if err != nil || u.Scheme != "https" || u.Hostname() != "localhost" {
				t.Fatalf("%v, the address is %s", err, r.Url)
			}
			e, err := connect(&rest.Config{Host: u.Host, TLSClientConfig: rest.TLSClientConfig{CAFile: cert}}, u)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err = e.StreamWithContext(n.Context(), remotecommand.StreamOptions{Stdout: &out}); err != nil || out.String() != "safe\n" {
				t.Errorf("%v, %q", err, out.String())
			}
		})
	}
}
