package streaming

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/moby/spdystream"
)

const (
	forwardVersion = "portforward.k8s.io"
	tunnelled      = spdyVersion + "+" + forwardVersion

	dataStream = "data" // of streamType; the other is errorStream
	maxPorts   = 100    // of channels: two for each, numbered by one byte
)

// forwarder serves a connection over which a client forwards ports.
type forwarder struct {
	server *Server
	ctx    context.Context //nolint:containedctx // a forwarder is one call
	podID  string

	streams spdyStreams
	running sync.WaitGroup
	mu      sync.Mutex
	pairs   map[string]*pair // guarded by mu; by request, those that miss a stream
}

// pair are the two streams of one forwarded connection.
type pair struct {
	data, errs *spdystream.Stream
	expire     *time.Timer
}

// serve returns when the client has gone, or with channels when all has been forwarded. An error says
// why nothing was.
func (f *forwarder) serve(w http.ResponseWriter, r *http.Request, ports []int32) error {
	if !websocket.IsWebSocketUpgrade(r) {
		nc, _, err := upgradeSPDY(w, r, []string{forwardVersion})
		if err != nil {
			return err
		}
		return f.serveSPDY(r, nc)
	}
	protocols := []string{tunnelled}
	if len(ports) > 0 && len(ports) <= maxPorts {
		protocols = append(protocols, channelsV4, channelsV4Base64)
	}
	ws, err := upgradeWebSocket(w, r, protocols)
	if err != nil {
		return err
	}
	if c := connOf(r); ws.Subprotocol() == tunnelled {
		return f.serveSPDY(r, &tunnel{Conn: ws.NetConn(), ws: ws, c: c})
	}
	return f.serveChannels(ws, connOf(r), ports)
}

func (f *forwarder) serveSPDY(r *http.Request, nc net.Conn) error {
	f.pairs = make(map[string]*pair)
	f.streams.admit, f.streams.opened = f.admit, f.opened
	if err := f.streams.serve(connOf(r), nc); err != nil {
		return err
	}
	<-f.streams.ended
	f.running.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pairs {
		p.expire.Stop()
	}
	return nil
}

// request says which streams belong together. A client that does not say opens the error stream first
// and its partner next.
func request(st *spdystream.Stream) string {
	if id := st.Headers().Get("requestID"); id != "" {
		return id
	}
	id := st.Identifier()
	if st.Headers().Get(streamType) == dataStream {
		id -= 2 // a client's streams have odd numbers
	}
	return strconv.FormatUint(uint64(id), 10)
}

// admit takes a data and an error stream for each request.
func (f *forwarder) admit(st *spdystream.Stream) error {
	if _, err := strconv.ParseUint(st.Headers().Get("port"), 10, 16); err != nil {
		return fmt.Errorf("a stream without port: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.pairs[request(st)]
	switch kind := st.Headers().Get(streamType); {
	case kind != dataStream && kind != errorStream:
		return fmt.Errorf("stream of type %q", kind)
	case ok && (kind == dataStream && p.data != nil || kind == errorStream && p.errs != nil):
		return errors.New("a stream for the second time")
	}
	return nil
}

// opened forwards when both streams are there.
func (f *forwarder) opened(st *spdystream.Stream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := request(st)
	p, ok := f.pairs[id]
	if !ok {
		p = &pair{expire: time.AfterFunc(creationTimeout, func() { f.forget(id) })}
		f.pairs[id] = p
	}
	if st.Headers().Get(streamType) == dataStream {
		p.data = st
	} else {
		p.errs = st
	}
	if p.data == nil || p.errs == nil {
		return
	}
	delete(f.pairs, id)
	p.expire.Stop()
	f.running.Go(func() { f.forward(p) })
}

// forget drops a stream whose partner has not come.
func (f *forwarder) forget(id string) {
	f.mu.Lock()
	p, ok := f.pairs[id]
	delete(f.pairs, id)
	f.mu.Unlock()
	if !ok {
		return
	}
	if p.errs != nil {
		_, _ = fmt.Fprintf(p.errs, "no data stream within %s", creationTimeout)
		f.streams.drop(p.errs)
	}
	if p.data != nil {
		f.streams.drop(p.data)
	}
}

func (f *forwarder) forward(p *pair) {
	port, _ := strconv.ParseInt(p.data.Headers().Get("port"), 10, 32) // admit has looked at it
	if err := f.server.backend.PortForward(f.ctx, f.podID, int32(port), forwarded{p.data}); err != nil {
		f.tell(p.errs, int32(port), err)
	}
	f.streams.drop(p.errs, p.data)
}

func (f *forwarder) tell(w io.Writer, port int32, err error) {
	f.server.log.Debug("forwarding ended", "pod", f.podID, "port", port, "error", err)
	if f.ctx.Err() == nil {
		_, _ = fmt.Fprintf(w, "port %d: %v", port, err)
	}
}

// forwarded gives a SPDY stream the ways to end of a TCP connection. SPDY's own Close ends one
// direction and leaves the other's bytes to nobody, which in time blocks the whole connection.
type forwarded struct{ *spdystream.Stream }

func (s forwarded) Write(p []byte) (int, error) { return chunked{s.Stream}.Write(p) }

// CloseWrite tells the client that no more comes.
func (s forwarded) CloseWrite() error { return s.Stream.Close() }

// Close ends both directions; a Read that waits returns.
func (s forwarded) Close() error {
	_ = s.Stream.Close() // fails when CloseWrite came before
	return s.Reset()
}

// serveChannels forwards every port of the request once, over channels 2i for bytes and 2i+1 for an
// error. The server begins both with the port, in two bytes.
func (f *forwarder) serveChannels(ws *websocket.Conn, c *conn, ports []int32) error {
	var readable []byte
	for i := range ports {
		readable = append(readable, byte(2*i)) //nolint:gosec // maxPorts
	}
	m := newChannels(ws, c, readable...)
	go m.serve()
	defer m.end()
	for i, port := range ports {
		data, errs := channel{m, readable[i]}, channel{m, readable[i] + 1}
		number := binary.LittleEndian.AppendUint16(nil, uint16(port)) //nolint:gosec // ports
		for _, ch := range []channel{data, errs} {
			if _, err := ch.Write(number); err != nil {
				return err
			}
		}
		f.running.Go(func() {
			if err := f.server.backend.PortForward(f.ctx, f.podID, port, forwardedChannel{data, m.out[data.n]}); err != nil {
				f.tell(errs, port, err)
			}
		})
	}
	f.running.Wait()
	return nil
}

// forwardedChannel is both directions of a channel. They end together: the client is told of neither.
type forwardedChannel struct {
	channel
	io.ReadCloser
}

func (s forwardedChannel) Read(p []byte) (int, error)  { return s.ReadCloser.Read(p) }
func (s forwardedChannel) Write(p []byte) (int, error) { return chunked{s.channel}.Write(p) }
func (s forwardedChannel) Close() error                { return s.ReadCloser.Close() }
