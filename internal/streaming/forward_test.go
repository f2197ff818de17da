package streaming_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"gantry/internal/engine"
	"gantry/internal/streaming"
)

// forward is a client's connection for port-forwarding.
type forward struct {
	conn httpstream.Connection
	next int
}

func dialForward(t *testing.T, s *streaming.Server) *forward {
	t.Helper()
	address, err := s.PortForward(&cri.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		t.Fatal(err)
	}
	rt, err := spdy.NewRoundTripper(nil)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, nil)
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
	return &forward{conn: conn}
}

// open asks for a connection to port.
func (f *forward) open(t *testing.T, port int) (data, errs httpstream.Stream) {
	t.Helper()
	h := http.Header{}
	h.Set("port", strconv.Itoa(port))
	h.Set("requestID", strconv.Itoa(f.next))
	f.next++
	h.Set("streamType", "error")
	errs, err := f.conn.CreateStream(h)
	if err != nil {
		t.Fatal(err)
	}
	h.Set("streamType", "data")
	if data, err = f.conn.CreateStream(h); err != nil {
		t.Fatal(err)
	}
	return data, errs
}

func TestPortForward(t *testing.T) {
	b := &backend{forward: func(_ context.Context, port int32, stream io.ReadWriteCloser) error {
		if port == 81 {
			return errors.New("connection refused")
		}
		in, err := io.ReadAll(stream)
		fmt.Fprintf(stream, "port %d got %s", port, in)
		return err
	}}
	f := dialForward(t, start(t, b, streaming.Options{}))
	for _, port := range []int{80, 8080} { // one connection, several streams
		data, errs := f.open(t, port)
		_, _ = io.WriteString(data, "hello")
		_ = data.Close()
		got, _ := io.ReadAll(data)
		if want := fmt.Sprintf("port %d got hello", port); string(got) != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if e, _ := io.ReadAll(errs); len(e) > 0 {
			t.Errorf("error %q", e)
		}
	}
	_, errs := f.open(t, 81)
	if e, _ := io.ReadAll(errs); !strings.Contains(string(e), "connection refused") {
		t.Errorf("got %q", e)
	}
}

// A direction ends alone, as TCP's do.
func TestPortForwardHalfCloses(t *testing.T) {
	got := make(chan string, 1)
	b := &backend{forward: func(_ context.Context, _ int32, stream io.ReadWriteCloser) error {
		_, _ = io.WriteString(stream, "bye")
		if err := stream.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			return err
		}
		in, err := io.ReadAll(stream)
		got <- string(in)
		return err
	}}
	data, _ := dialForward(t, start(t, b, streaming.Options{})).open(t, 80)
	if out, _ := io.ReadAll(data); string(out) != "bye" {
		t.Errorf("got %q", out)
	}
	_, _ = io.WriteString(data, "after")
	_ = data.Close()
	if in := <-got; in != "after" {
		t.Errorf("got %q", in)
	}
}

// What a client still sends to a forwarding that has ended stands in no other's way.
func TestPortForwardDropsWhatComesTooLate(t *testing.T) {
	b := &backend{forward: func(_ context.Context, port int32, stream io.ReadWriteCloser) error {
		if port == 80 {
			return stream.Close()
		}
		_, err := io.WriteString(stream, "next")
		return err
	}}
	f := dialForward(t, start(t, b, streaming.Options{}))
	data, _ := f.open(t, 80)
	_, _ = io.ReadAll(data)
	for range 1000 {
		if _, err := data.Write(make([]byte, 1<<10)); err != nil {
			break
		}
	}
	for port := 81; port < 91; port++ { // as many as there are workers for frames, and more
		data, _ := f.open(t, port)
		if out, _ := io.ReadAll(data); string(out) != "next" {
			t.Errorf("got %q", out)
		}
	}
}

// The protocol itself would leave a forwarding alone with a silent peer for ever.
func TestPortForwardEndsWithItsClient(t *testing.T) {
	began := make(chan struct{})
	b := &backend{forward: func(ctx context.Context, _ int32, _ io.ReadWriteCloser) error {
		close(began)
		<-ctx.Done()
		return ctx.Err()
	}}
	f := dialForward(t, start(t, b, streaming.Options{}))
	f.open(t, 80)
	<-began
	_ = f.conn.Close()
	if !eventually(func() bool { return b.running.Load() == 0 }) {
		t.Error("the forwarding outlives its client")
	}
}

func TestTLS(t *testing.T) {
	b := &backend{exec: func(_ context.Context, req *engine.Exec) (int32, error) {
		_, err := io.WriteString(req.IO.Stdout, "safe")
		return 0, err
	}}
	s := start(t, b, streaming.Options{TLS: &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: tls.VersionTLS12}})
	u := execAddress(t, s, &cri.ExecRequest{Stdout: true})
	if !strings.HasPrefix(u, "https://") {
		t.Errorf("the address is %s", u)
	}
	var out strings.Builder
	if err := dial(t, u, remotecommand.StreamOptions{Stdout: &out}); err != nil || out.String() != "safe" {
		t.Errorf("%v, %q", err, out.String())
	}
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// A WebSocket carries the same streams, each message led by the number of its channel.
func TestExecOverWebSocket(t *testing.T) {
	b := &backend{exec: func(_ context.Context, req *engine.Exec) (int32, error) {
		if req.IO.Stdin != nil {
			return 1, errors.New("a stream that nobody asked for")
		}
		_, err := io.WriteString(req.IO.Stdout, "out")
		return 3, err
	}}
	s := start(t, b, streaming.Options{})
	u := execAddress(t, s, &cri.ExecRequest{Stdout: true})
	config, err := websocket.NewConfig(strings.Replace(u, "http", "ws", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v4.channel.k8s.io"}
	ws, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ws.Close() }()
	channels := make(map[byte]string)
	for {
		var m []byte
		if err := websocket.Message.Receive(ws, &m); err != nil {
			break
		}
		channels[m[0]] += string(m[1:])
	}
	if channels[1] != "out" || !strings.Contains(channels[3], `"ExitCode","message":"3"`) {
		t.Errorf("%q", channels)
	}
}
