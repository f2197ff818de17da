package cluster_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"

	"gantry/internal/labimage"
	"gantry/test/cluster/kube"
)

const shellPod = `
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: shell, image: $BUSYBOX, stdin: true, command: [sh, -c, "while read l; do echo got $l; done; exec sleep 1000"]}
`

// protocols are the ways a client may speak to the API server.
var protocols = map[string]func(*rest.Config, string, string) (remotecommand.Executor, error){
	"SPDY": func(c *rest.Config, method, address string) (remotecommand.Executor, error) {
		parsed, err := url.Parse(address)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutor(c, method, parsed)
	},
	"WebSocket": remotecommand.NewWebSocketExecutor,
}

func streams(t *testing.T, c *kube.Cluster) {
	for name, executor := range protocols {
		check(t, c, "exec over "+name, func(s *suite) { s.execOver(executor) })
		check(t, c, "attach over "+name, func(s *suite) { s.attachOver(executor) })
	}
	check(t, c, "port-forward carries 20 MB both ways", portForward)
	check(t, c, "kubectl cp of a large file both ways", copyLarge)
	check(t, c, "kubectl debug adds an ephemeral container", func(s *suite) {
		s.apply(shellPod)
		s.ready("shell")
		s.kubectl("debug", "shell", "--image", kube.Busybox, "--target", "shell", "-c", "look", "--quiet", "--", "sh", "-c", "ps | grep -c '[r]ead l'")
		s.eventually("the debug container's log", func(ctx context.Context) error {
			out, err := s.TryKubectl(ctx, "", "-n", s.namespace, "logs", "shell", "-c", "look")
			if err == nil && strings.TrimSpace(out) != "1" {
				err = fmt.Errorf("it saw %q", out)
			}
			return err
		})
	})
	check(t, c, "kubectl run -i gets what it types", func(s *suite) {
		out, err := s.TryKubectl(s.t.Context(), "hello\n", "-n", s.namespace, "run", "cat", "-i", "--rm", "--quiet", "--restart=Never",
			"--image", kube.Busybox, "--command", "--", "cat")
		if err != nil || out != "hello\n" {
			s.t.Errorf("got %q, %v", out, err)
		}
	})
}

func (s *suite) execOver(executor func(*rest.Config, string, string) (remotecommand.Executor, error)) {
	s.apply(shellPod)
	s.ready("shell")
	run := func(o *corev1.PodExecOptions, stdin io.Reader) (string, string, error) {
		address := s.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(s.namespace).Name("shell").SubResource("exec").
			VersionedParams(o, scheme.ParameterCodec).URL().String()
		e, err := executor(s.REST, "POST", address)
		if err != nil {
			return "", "", err
		}
		var stdout, stderr bytes.Buffer
		streams := remotecommand.StreamOptions{Stdin: stdin, Stdout: &stdout, Tty: o.TTY}
		if o.Stderr {
			streams.Stderr = &stderr // a stream that was not asked for is refused
		}
		err = e.StreamWithContext(s.t.Context(), streams)
		return stdout.String(), stderr.String(), err
	}
	out, errs, err := run(&corev1.PodExecOptions{Command: []string{"sh", "-c", "echo out; echo err >&2; exit 7"}, Stdout: true, Stderr: true}, nil)
	if out != "out\n" || errs != "err\n" || err == nil || !strings.Contains(err.Error(), "exit code 7") {
		s.t.Errorf("streams %q and %q, error %v", out, errs, err)
	}
	out, _, err = run(&corev1.PodExecOptions{Command: []string{"tty"}, Stdin: true, Stdout: true, TTY: true}, strings.NewReader(""))
	if err != nil || !strings.HasPrefix(out, "/dev/pts/") {
		s.t.Errorf("on a terminal: %q, %v", out, err)
	}
	data := make([]byte, 8<<20)
	for i := range data {
		data[i] = byte(rand.IntN(256))
	}
	out, _, err = run(&corev1.PodExecOptions{Command: []string{"cat"}, Stdin: true, Stdout: true}, bytes.NewReader(data))
	if err != nil || out != string(data) {
		s.t.Errorf("of %d bytes %d came back: %v", len(data), len(out), err)
	}
}

func (s *suite) attachOver(executor func(*rest.Config, string, string) (remotecommand.Executor, error)) {
	s.apply(shellPod)
	s.ready("shell")
	address := s.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(s.namespace).Name("shell").SubResource("attach").
		VersionedParams(&corev1.PodAttachOptions{Stdin: true, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL().String()
	e, err := executor(s.REST, "POST", address)
	if err != nil {
		s.t.Fatal(err)
	}
	in, typed := io.Pipe()
	read, out := io.Pipe()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: io.Discard})
	}()
	for _, line := range []string{"one", "two"} {
		if _, err := fmt.Fprintln(typed, line); err != nil {
			s.t.Fatal(err)
		}
		got := make([]byte, len("got one\n"))
		if _, err := io.ReadFull(read, got); err != nil || string(got) != "got "+line+"\n" {
			s.t.Fatalf("answer %q, %v", got, err)
		}
	}
	cancel()
	<-done
}

// portForward sends data through nc in the pod, which sends it back.
func portForward(s *suite) {
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: $WEB, readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}}
  - {name: echo, image: $BUSYBOX, command: [sh, -c, "exec nc -ll -p 7000 -e cat"]}
  - {name: six, image: $WEB, command: [httpd, -f, -p, "[::1]:7006", -h, /www]}
`)
	s.ready("web")
	ports := s.forward("web", 80, 7000, 7006)
	for _, port := range []uint16{80, 7006} {
		page, err := fetch("http://127.0.0.1:" + strconv.Itoa(int(ports[port])))
		if err != nil || page != labimage.Page {
			s.t.Errorf("port %d: page %q, %v", port, page, err)
		}
	}
	if err := echoes("127.0.0.1:"+strconv.Itoa(int(ports[7000])), 20<<20); err != nil {
		s.t.Errorf("port 7000: %v", err)
	}
}

func fetch(address string) (string, error) {
	answer, err := http.Get(address)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	return string(page), err
}

// echoes sends n bytes to address and compares what comes back.
func echoes(address string, n int) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	sent, got := sha256.New(), sha256.New()
	errs := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.MultiWriter(conn, sent), rand.NewChaCha8([32]byte{}), int64(n))
		errs <- err
	}()
	if _, err := io.CopyN(got, conn, int64(n)); err != nil {
		return err
	}
	if err := <-errs; err != nil {
		return err
	}
	if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		return fmt.Errorf("what came back of %d bytes differs", n)
	}
	return nil
}

// forward opens ports of a pod on this machine until the check ends: port of the pod to port here.
func (s *suite) forward(pod string, ports ...int) map[uint16]uint16 {
	s.t.Helper()
	address := s.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(s.namespace).Name(pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(s.REST)
	if err != nil {
		s.t.Fatal(err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", address)
	var specs []string
	for _, p := range ports {
		specs = append(specs, "0:"+strconv.Itoa(p))
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.New(dialer, specs, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- forwarder.ForwardPorts() }()
	s.t.Cleanup(func() { close(stop) })
	select {
	case <-ready:
	case err = <-ended:
		s.t.Fatalf("port-forward: %v", err)
	}
	open, err := forwarder.GetPorts()
	if err != nil {
		s.t.Fatal(err)
	}
	found := map[uint16]uint16{}
	for _, p := range open {
		found[p.Remote] = p.Local
	}
	return found
}

// copyLarge copies by tar, which the image must have.
func copyLarge(s *suite) {
	s.apply(shellPod)
	s.ready("shell")
	dir := s.t.TempDir()
	sum := sha256.New()
	file, err := os.Create(filepath.Join(dir, "there"))
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err = io.CopyN(io.MultiWriter(file, sum), rand.NewChaCha8([32]byte{1}), 50<<20); err != nil {
		s.t.Fatal(err)
	}
	if err = file.Close(); err != nil {
		s.t.Fatal(err)
	}
	want := hex.EncodeToString(sum.Sum(nil))
	s.kubectl("cp", filepath.Join(dir, "there"), "shell:/tmp/file")
	if out := s.exec("shell", "sha256sum /tmp/file"); !strings.HasPrefix(out, want) {
		s.t.Errorf("in the pod: %s, want %s", out, want)
	}
	s.kubectl("cp", "shell:/tmp/file", filepath.Join(dir, "back"))
	data, err := os.ReadFile(filepath.Join(dir, "back"))
	if err != nil {
		s.t.Fatal(err)
	}
	if got := sha256.Sum256(data); hex.EncodeToString(got[:]) != want {
		s.t.Errorf("back: %x, want %s", got, want)
	}
}
