package streaming

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/gorilla/websocket"

	"gantry/internal/engine"
)

// chunk is how much of an output goes into one frame: other streams take their turns between.
const chunk = 32 << 10

// want says which streams a request announced.
type want struct{ stdin, stdout, stderr, tty bool }

// client are a client's streams, whatever protocol they came by. Those that it did not announce are nil.
type client struct {
	stdin, resize          io.Reader
	stdout, stderr, status io.WriteCloser

	structured bool   // the protocol tells how a process ended as JSON
	end        func() // says goodbye, after all that was written; Reads return from then on
}

// open makes the connection one of streams. Where it cannot, the client has been told why.
func (s *Server) open(ctx context.Context, w http.ResponseWriter, r *http.Request, streams want) (*client, error) {
	if streams.tty {
		streams.stderr = false // a terminal has one output
	}
	if websocket.IsWebSocketUpgrade(r) {
		return openChannels(ctx, w, r, streams)
	}
	return s.openSPDY(ctx, w, r, streams)
}

// command runs what the streams are for and tells the client how it ended.
func (s *Server) command(ctx context.Context, c *client, run func(context.Context, engine.IO) (int32, error)) {
	defer c.end()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	code, err := run(ctx, c.io())
	// The outputs end before the client is told how the process did.
	for _, out := range []io.WriteCloser{c.stdout, c.stderr} {
		if out != nil {
			_ = out.Close()
		}
	}
	if err != nil {
		s.log.Debug("stream ended", "error", err)
	}
	if err = statusOf(code, err).write(c.status, c.structured); err != nil {
		s.log.Debug("tell a client how its command ended", "error", err)
	}
	_ = c.status.Close()
}

// io leaves nil what is nil: an interface with a nil pointer is not.
func (c *client) io() engine.IO {
	var e engine.IO
	if c.stdin != nil {
		e.Stdin = c.stdin
	}
	if c.stdout != nil {
		e.Stdout = chunked{c.stdout}
	}
	if c.stderr != nil {
		e.Stderr = chunked{c.stderr}
	}
	if c.resize != nil {
		e.Resize = sizes(c.resize)
	}
	return e
}

// sizes hands terminal sizes on until r ends, or says what is none. One that nobody took yet is replaced by the next.
// R is read to its end all the same: what nobody reads would hold back the client's input too.
func sizes(r io.Reader) <-chan engine.Size {
	out := make(chan engine.Size, 1)
	go func() {
		defer func() { _, _ = io.Copy(io.Discard, r) }()
		defer close(out)
		dec := json.NewDecoder(r)
		for {
			var sz engine.Size
			if dec.Decode(&sz) != nil {
				return
			}
			select {
			case <-out:
			default:
			}
			out <- sz // there is room: nobody else sends
		}
	}()
	return out
}

// chunked writes no more than a chunk at once.
type chunked struct{ io.Writer }

func (c chunked) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		var k int
		k, err = c.Writer.Write(p[:min(len(p), chunk)])
		n, p = n+k, p[k:]
	}
	return n, err
}

var errNotAnnounced = errors.New("a stream that was not announced")
