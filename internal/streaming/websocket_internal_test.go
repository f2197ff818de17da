package streaming

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// A client that is still reading when the server has said goodbye pings, and is not cut off for that: what it has not
// got yet would be lost.
func TestPingAfterTheGoodbyeEndsNothing(t *testing.T) {
	type message struct {
		data []byte
		err  error
	}
	next := make(chan message, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := upgradeWebSocket(w, r, commandChannels)
		if err != nil {
			next <- message{nil, err}
			return
		}
		defer func() { _ = ws.Close() }()
		goodbye(ws)
		_, data, err := ws.ReadMessage()
		next <- message{data, err}
	}))
	defer s.Close()
	ws, res, err := websocket.DefaultDialer.DialContext(t.Context(), strings.Replace(s.URL, "http", "ws", 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	defer func() { _ = ws.Close() }()
	ping := ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(time.Minute))
	if err = errors.Join(ping, ws.WriteMessage(websocket.BinaryMessage, []byte("after"))); err != nil {
		t.Fatal(err)
	}
	if got := <-next; got.err != nil || string(got.data) != "after" {
		t.Errorf("behind the ping came %q, %v", got.data, got.err)
	}
}
