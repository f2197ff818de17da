package streaming_test

import (
	"context"
	"encoding/base64"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/engine"
	"gantry/internal/streaming"
)

// wsConn is a client that sees the messages themselves.
type wsConn struct {
	*websocket.Conn
	coded bool
}

func webSocket(t *testing.T, address string, protocol ...string) *wsConn {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(address, "http", "ws", 1), "http://elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = protocol
	ws, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ws.Close() })
	return &wsConn{ws, strings.Contains(strings.Join(protocol, ""), "base64")}
}

func (ws *wsConn) send(t *testing.T, channel byte, data string) {
	t.Helper()
	var err error
	if ws.coded {
		err = websocket.Message.Send(ws.Conn, string('0'+channel)+base64.StdEncoding.EncodeToString([]byte(data)))
	} else {
		err = websocket.Message.Send(ws.Conn, append([]byte{channel}, data...))
	}
	if err != nil {
		t.Error(err)
	}
}

// all returns what came on every channel until the server has ended the connection.
func (ws *wsConn) all() map[byte]string {
	channels := make(map[byte]string)
	for {
		var m []byte
		if websocket.Message.Receive(ws.Conn, &m) != nil {
			return channels
		}
		if ws.coded {
			b, _ := base64.StdEncoding.DecodeString(string(m[1:]))
			m = append([]byte{m[0] - '0'}, b...)
		}
		channels[m[0]] += string(m[1:])
	}
}

// Each message is led by the number of its channel, in base64 by its digit.
func TestChannelsOfAWebSocket(t *testing.T) {
	b := &backend{exec: func(_ context.Context, req *engine.Exec) (int32, error) {
		in := make([]byte, 2)
		_, err := io.ReadFull(req.IO.Stdin, in)
		_, _ = req.IO.Stdout.Write(in)
		_, _ = req.IO.Stderr.Write([]byte{0xff, 0})
		return 3, err
	}}
	s := start(t, b, streaming.Options{})
	for protocol, status := range map[string]string{
		"v5.channel.k8s.io":        `"ExitCode","message":"3"`,
		"v4.channel.k8s.io":        `"ExitCode","message":"3"`,
		"v4.base64.channel.k8s.io": `"ExitCode","message":"3"`,
		"channel.k8s.io":           "exit status 3",
		"base64.channel.k8s.io":    "exit status 3",
		"":                         "exit status 3",
	} {
		t.Run(protocol, func(t *testing.T) {
			u := execAddress(t, s, &cri.ExecRequest{Stdin: true, Stdout: true, Stderr: true})
			var names []string
			if protocol != "" {
				names = []string{protocol}
			}
			ws := webSocket(t, u, names...)
			ws.send(t, 9, "a channel that is not there")
			ws.send(t, 1, "one that is the server's")
			ws.send(t, 0, "h")
			ws.send(t, 0, "i")
			got := ws.all()
			if got[1] != "hi" || got[2] != "\xff\x00" || !strings.Contains(got[3], status) {
				t.Errorf("%q", got)
			}
		})
	}
}

// The streams that a request did not announce are not there.
func TestChannelsThatNobodyAnnounced(t *testing.T) {
	b := &backend{exec: func(_ context.Context, req *engine.Exec) (int32, error) {
		if req.IO.Stdin != nil || req.IO.Stderr != nil || req.IO.Resize != nil {
			return 1, nil
		}
		return 0, nil
	}}
	s := start(t, b, streaming.Options{})
	ws := webSocket(t, execAddress(t, s, &cri.ExecRequest{Stdout: true}), "v4.channel.k8s.io")
	if got := ws.all(); !strings.Contains(got[3], `"Success"`) {
		t.Errorf("%q", got)
	}
}

// What is no message of the protocol ends the connection, and what was run for it.
func TestBrokenMessagesEndTheConnection(t *testing.T) {
	for protocol, message := range map[string]any{
		"v5.channel.k8s.io":        []byte{255},
		"v4.base64.channel.k8s.io": "0!!!!",
	} {
		t.Run(protocol, func(t *testing.T) {
			b := &backend{exec: func(ctx context.Context, _ *engine.Exec) (int32, error) {
				<-ctx.Done()
				return 0, ctx.Err()
			}}
			s := start(t, b, streaming.Options{})
			ws := webSocket(t, execAddress(t, s, &cri.ExecRequest{Stdin: true, Stdout: true}), protocol)
			if err := websocket.Message.Send(ws.Conn, message); err != nil {
				t.Fatal(err)
			}
			ws.all()
			if !eventually(func() bool { return b.running.Load() == 0 }) {
				t.Error("the process outlives the protocol")
			}
		})
	}
}
