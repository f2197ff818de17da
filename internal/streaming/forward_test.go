package streaming_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	transport "k8s.io/client-go/transport/spdy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"

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
	return &forward{conn: spdyConn(t, address, "portforward.k8s.io")}
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

// A real client, with a listener of its own, over SPDY and over SPDY in a WebSocket.
func TestPortForwardWithKubectlsClient(t *testing.T) {
	const size, connections = 100 << 20, 20
	b := &backend{forward: func(_ context.Context, port int32, stream io.ReadWriteCloser) error {
		if port != 80 {
			return errors.New("connection refused")
		}
		_, err := io.Copy(stream, stream)
		return errors.Join(err, stream.(interface{ CloseWrite() error }).CloseWrite())
	}}
	s := start(t, b, streaming.Options{})
	for name, dialer := range dialers {
		t.Run(name, func(t *testing.T) {
			local := forwardPort(t, s, dialer)
			var wg sync.WaitGroup
			for i := range connections {
				wg.Go(func() { echo(t, local, size/connections+i) })
			}
			wg.Wait()
			echo(t, local, size)
		})
	}
}

var dialers = map[string]func(*rest.Config, *url.URL) (httpstream.Dialer, error){
	"SPDY": func(c *rest.Config, u *url.URL) (httpstream.Dialer, error) {
		rt, upgrader, err := transport.RoundTripperFor(c)
		return transport.NewDialerForStreaming(upgrader, &http.Client{Transport: rt}, http.MethodPost, u), err
	},
	"SPDY in a WebSocket": func(c *rest.Config, u *url.URL) (httpstream.Dialer, error) {
		return portforward.NewSPDYOverWebsocketDialerForStreaming(u, c)
	},
}

// forwardPort returns the address at which a client listens for port 80 until the test ends.
func forwardPort(t *testing.T, s *streaming.Server, dialer func(*rest.Config, *url.URL) (httpstream.Dialer, error)) string {
	t.Helper()
	address, err := s.PortForward(&cri.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	d, err := dialer(&rest.Config{Host: u.Host}, u)
	if err != nil {
		t.Fatal(err)
	}
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	f, err := portforward.NewOnAddressesForStreaming(d, []string{"127.0.0.1"}, []string{"0:80"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- f.ForwardPorts() }()
	t.Cleanup(func() {
		close(stop)
		if ferr := <-ended; ferr != nil {
			t.Error(ferr)
		}
	})
	select {
	case <-ready:
	case err = <-ended:
		t.Fatal(err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local)
}

// echo sends size bytes and wants the same ones back.
func echo(t *testing.T, address string, size int) {
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = conn.Close() }()
	sent := sha256.New()
	go func() {
		_, _ = io.Copy(io.MultiWriter(conn, sent), io.LimitReader(rand.NewChaCha8([32]byte{}), int64(size)))
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	got := sha256.New()
	n, err := io.Copy(got, conn)
	if err != nil || n != int64(size) || !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
		t.Errorf("%v, %d bytes came back of %d, or other ones", err, n, size)
	}
}

// With channels every port of the request is there once. One that nobody listens on is told, and the
// others go on.
func TestPortForwardOverChannels(t *testing.T) {
	b := &backend{forward: func(_ context.Context, port int32, stream io.ReadWriteCloser) error {
		if port == 81 {
			return errors.New("connection refused")
		}
		in := make([]byte, 5)
		_, err := io.ReadFull(stream, in)
		fmt.Fprintf(stream, "port %d got %s", port, in)
		return err
	}}
	s := start(t, b, streaming.Options{})
	for _, protocol := range []string{"v4.channel.k8s.io", "v4.base64.channel.k8s.io"} {
		t.Run(protocol, func(t *testing.T) {
			address, err := s.PortForward(&cri.PortForwardRequest{PodSandboxId: "p", Port: []int32{80, 81}})
			if err != nil {
				t.Fatal(err)
			}
			ws := webSocket(t, address, protocol)
			ws.send(t, 0, "hello")
			got := ws.all()
			if want := "\x50\x00port 80 got hello"; got[0] != want {
				t.Errorf("got %q, want %q", got[0], want)
			}
			if want := "\x51\x00"; got[2] != want || !strings.Contains(got[3], "connection refused") {
				t.Errorf("got %q and %q", got[2], got[3])
			}
		})
	}
}
