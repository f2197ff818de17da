package streaming

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// The channels of a command. Every message begins with the number of its channel.
const (
	stdinChannel = iota
	stdoutChannel
	stderrChannel
	errorChannel
	resizeChannel

	closeSignal = 255 // since v5: the channel in the next byte ends
)

const (
	channelsV5       = "v5.channel.k8s.io"
	channelsV4       = "v4.channel.k8s.io"
	channelsV4Base64 = "v4.base64.channel.k8s.io"
)

// commandChannels are the protocols of commands; without a version, and without a name, there are no
// exit codes.
var commandChannels = []string{channelsV5, channelsV4, channelsV4Base64, "channel.k8s.io", "base64.channel.k8s.io"}

// upgradeWebSocket answers a request for one of protocols, or for none.
func upgradeWebSocket(w http.ResponseWriter, r *http.Request, protocols []string) (*websocket.Conn, error) {
	known := func(p string) bool { return slices.Contains(protocols, p) }
	if offered := websocket.Subprotocols(r); len(offered) > 0 && !slices.ContainsFunc(offered, known) {
		http.Error(w, "the WebSocket protocols here are "+strings.Join(protocols, ", "), http.StatusBadRequest)
		return nil, fmt.Errorf("unknown WebSocket protocols %q", offered)
	}
	u := websocket.Upgrader{
		Subprotocols: protocols,
		CheckOrigin:  func(*http.Request) bool { return true }, // the token is the permission
	}
	ws, err := u.Upgrade(w, r, nil)
	if err != nil {
		return nil, fmt.Errorf("take the connection: %w", err)
	}
	// The library's own handler gives an answer up after a second, and the connection with it where
	// the client reads slowly. No answer follows the goodbye, after which the client may still have much to read.
	ws.SetPingHandler(func(data string) error {
		err := ws.WriteControl(websocket.PongMessage, []byte(data), time.Time{})
		if errors.Is(err, websocket.ErrCloseSent) {
			return nil
		}
		return err
	})
	return ws, nil
}

// channels are the streams of a WebSocket.
type channels struct {
	ws     *websocket.Conn
	c      *conn
	coded  bool                    // messages are base64
	closes bool                    // the client can end a channel
	in     map[byte]*io.PipeWriter // what the client may write to; set before serve
	out    map[byte]*io.PipeReader // the other ends
	ended  chan struct{}           // closed when nothing is read any more

	mu  sync.Mutex
	buf []byte // guarded by mu
}

// newChannels takes what the client writes to those of readable.
func newChannels(ws *websocket.Conn, c *conn, readable ...byte) *channels {
	m := &channels{
		ws: ws, c: c, ended: make(chan struct{}),
		coded: strings.Contains(ws.Subprotocol(), "base64"), closes: ws.Subprotocol() == channelsV5,
		in: make(map[byte]*io.PipeWriter), out: make(map[byte]*io.PipeReader),
	}
	for _, n := range readable {
		m.out[n], m.in[n] = io.Pipe()
	}
	return m
}

// serve reads messages until the connection has ended, and then cancels its context. What belongs to
// a channel that nobody reads, or no longer, is dropped.
func (m *channels) serve() {
	defer close(m.ended)
	defer func() {
		m.c.cancel()
		for _, w := range m.in {
			_ = w.Close()
		}
	}()
	buf := make([]byte, chunk)
	for {
		_, r, err := m.ws.NextReader()
		if err != nil {
			return
		}
		if err = m.receive(r, buf); err != nil {
			_ = m.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseProtocolError, err.Error()), time.Now().Add(time.Second))
			return
		}
	}
}

func (m *channels) receive(r io.Reader, buf []byte) error {
	var id [1]byte
	if _, err := io.ReadFull(r, id[:]); err != nil {
		return nil //nolint:nilerr // an empty message says nothing; a broken connection is seen by the next
	}
	n := id[0]
	if m.closes && n == closeSignal {
		if _, err := io.ReadFull(r, id[:]); err != nil {
			return errors.New("a close signal names a channel")
		}
		if w := m.in[id[0]]; w != nil {
			_ = w.Close()
		}
		return nil
	}
	if m.coded {
		n -= '0'
		r = base64.NewDecoder(base64.StdEncoding, r)
	}
	w := m.in[n]
	if w == nil {
		return nil
	}
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, r, buf)
	var bad base64.CorruptInputError
	if errors.As(err, &bad) {
		return errors.New("a message is not base64")
	}
	return nil // the channel was closed, or the connection broke
}

// write sends one message.
func (m *channels) write(n byte, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.coded {
		m.buf = base64.StdEncoding.AppendEncode(append(m.buf[:0], '0'+n), p)
		return m.ws.WriteMessage(websocket.TextMessage, m.buf)
	}
	m.buf = append(append(m.buf[:0], n), p...)
	return m.ws.WriteMessage(websocket.BinaryMessage, m.buf)
}

// end says goodbye and waits until the client has gone.
func (m *channels) end() {
	for _, r := range m.out {
		_ = r.Close()
	}
	goodbye(m.ws)
	m.c.closeWithin(lingering)
	<-m.ended
}

func goodbye(ws *websocket.Conn) {
	msg := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	_ = ws.WriteControl(websocket.CloseMessage, msg, time.Time{})
}

// channel is one that the client reads. It has no end of its own: the protocol tells none to clients.
type channel struct {
	m *channels
	n byte
}

func (c channel) Write(p []byte) (int, error) {
	if err := c.m.write(c.n, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c channel) Close() error { return nil }

// openChannels returns a client's channels. It has opened them all with the connection.
func openChannels(ctx context.Context, w http.ResponseWriter, r *http.Request, streams want) (*client, error) {
	ws, err := upgradeWebSocket(w, r, commandChannels)
	if err != nil {
		return nil, err
	}
	var readable []byte
	if streams.stdin {
		readable = append(readable, stdinChannel)
	}
	if streams.tty {
		readable = append(readable, resizeChannel)
	}
	m := newChannels(ws, connOf(r), readable...)
	c := &client{status: channel{m, errorChannel}, structured: strings.HasPrefix(ws.Subprotocol(), "v"), end: m.end}
	hello := byte(errorChannel)
	if streams.stderr {
		c.stderr, hello = channel{m, stderrChannel}, stderrChannel
	}
	if streams.stdout {
		c.stdout, hello = channel{m, stdoutChannel}, stdoutChannel
	}
	if streams.stdin {
		c.stdin = m.out[stdinChannel]
	}
	if streams.tty {
		c.resize = m.out[resizeChannel]
	}
	// Old clients wait for an empty message before they send.
	_ = m.write(hello, nil)
	go m.serve()
	return c, nil
}

// tunnel is the connection that a WebSocket carries as binary messages.
type tunnel struct {
	net.Conn // the WebSocket's own
	ws       *websocket.Conn
	c        *conn
	message  io.Reader // that is being read; nil between two
}

func (t *tunnel) Read(p []byte) (int, error) {
	for {
		if t.message == nil {
			_, r, err := t.ws.NextReader()
			if err != nil {
				return 0, io.EOF
			}
			t.message = r
		}
		n, err := t.message.Read(p)
		if err != nil {
			t.message = nil
		}
		if n > 0 {
			return n, nil
		}
	}
}

func (t *tunnel) Write(p []byte) (int, error) {
	if err := t.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close says goodbye; Read goes on until the client has gone.
func (t *tunnel) Close() error {
	goodbye(t.ws)
	t.c.closeWithin(lingering)
	return nil
}
