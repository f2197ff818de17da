package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/spdystream"
	"k8s.io/streaming/pkg/httpstream"
)

const spdyVersion = "SPDY/3.1"

// The header of a stream that says what it is for, and its values for commands.
const (
	streamType   = "streamType"
	stdinStream  = "stdin"
	stdoutStream = "stdout"
	stderrStream = "stderr"
	errorStream  = "error"
	resizeStream = "resize"
)

// The versions of the protocol of commands: since the third a terminal has a size, since the fourth an
// exit code is told.
var commandVersions = []string{"v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"}

// spdyStreams is a connection on which a client opens streams. Each is shown to admit, which says
// why it is not wanted, and after the answer to it to opened. Neither may wait: they are called by those
// who read the other streams' frames.
type spdyStreams struct {
	admit  func(*spdystream.Stream) error
	opened func(*spdystream.Stream)

	conn   *spdystream.Connection
	ended  chan struct{} // closed when nothing is read any more
	mu     sync.Mutex
	closed bool                        // guarded by mu
	open   map[*spdystream.Stream]bool // whether it was answered; guarded by mu
}

// serve reads frames until the connection has ended, and then cancels ctx's.
func (s *spdyStreams) serve(c *conn, nc net.Conn) error {
	var err error
	if s.conn, err = spdystream.NewConnection(nc, true); err != nil {
		return err
	}
	s.ended, s.open = make(chan struct{}), make(map[*spdystream.Stream]bool)
	go func() {
		defer close(s.ended)
		defer c.cancel()
		s.conn.Serve(s.handle)
	}()
	return nil
}

func (s *spdyStreams) handle(st *spdystream.Stream) {
	if err := s.add(st); err != nil {
		_ = st.Reset()
		return
	}
	// Without an answer every Write would wait for one, and Close too: the connection is broken.
	if st.SendReply(http.Header{}, false) != nil {
		s.drop(st)
		return
	}
	if s.answered(st) {
		s.opened(st)
	}
}

// answered says whether the stream is still wanted.
func (s *spdyStreams) answered(st *spdystream.Stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, wanted := s.open[st]; !wanted {
		return false
	}
	s.open[st] = true
	return true
}

func (s *spdyStreams) add(st *spdystream.Stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if err := s.admit(st); err != nil {
		return err
	}
	s.open[st] = false
	return nil
}

// drop ends streams in both directions.
func (s *spdyStreams) drop(list ...*spdystream.Stream) {
	for _, st := range list {
		s.mu.Lock()
		answered := s.open[st]
		delete(s.open, st)
		s.mu.Unlock()
		if answered {
			_ = st.Close() // fails where it was closed before
		}
		_ = st.Reset()
	}
}

// end says goodbye and waits until the client has gone.
func (s *spdyStreams) end() {
	s.mu.Lock()
	s.closed = true
	open := make([]*spdystream.Stream, 0, len(s.open))
	for st := range s.open {
		open = append(open, st)
	}
	s.mu.Unlock()
	s.drop(open...)
	_ = s.conn.Close()
	<-s.ended
}

// upgradeSPDY answers a request for one of versions and takes its connection.
func upgradeSPDY(w http.ResponseWriter, r *http.Request, versions []string) (nc net.Conn, version string, err error) {
	if !httpstream.IsUpgradeRequest(r) || !strings.Contains(strings.ToUpper(r.Header.Get("Upgrade")), spdyVersion) {
		http.Error(w, "an upgrade to "+spdyVersion+" or WebSocket is needed", http.StatusBadRequest)
		return nil, "", errors.New("a request without upgrade")
	}
	if version, err = httpstream.Handshake(r, w, versions); err != nil {
		return nil, "", err
	}
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", spdyVersion)
	w.WriteHeader(http.StatusSwitchingProtocols)
	hijacked, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, "", fmt.Errorf("take the connection: %w", err)
	}
	return &polite{Conn: hijacked, r: rw.Reader, c: connOf(r)}, version, nil
}

// polite is a connection whose Close only says that no more comes. Closed at once, with bytes of the
// client unread, the kernel would throw away what the client has not yet got.
type polite struct {
	net.Conn
	r io.Reader
	c *conn
}

func (p *polite) Read(b []byte) (int, error) { return p.r.Read(b) }

func (p *polite) Close() error {
	p.c.closeWithin(lingering)
	if h, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return p.Conn.Close()
}

// commandStreams are the streams of one command.
type commandStreams struct {
	complete chan struct{} // closed when every announced stream is there

	mu      sync.Mutex
	missing map[string]bool               // guarded by mu; by streamType
	have    map[string]*spdystream.Stream // guarded by mu
}

func newCommandStreams(w want, version string) *commandStreams {
	cs := &commandStreams{
		complete: make(chan struct{}),
		missing:  map[string]bool{errorStream: true},
		have:     make(map[string]*spdystream.Stream),
	}
	sized := w.tty && slices.Index(commandVersions, version) < 2
	for kind, announced := range map[string]bool{stdinStream: w.stdin, stdoutStream: w.stdout, stderrStream: w.stderr, resizeStream: sized} {
		if announced {
			cs.missing[kind] = true
		}
	}
	return cs
}

// admit takes every announced stream once.
func (cs *commandStreams) admit(st *spdystream.Stream) error {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	kind := st.Headers().Get(streamType)
	if _, twice := cs.have[kind]; twice || !cs.missing[kind] {
		return errNotAnnounced
	}
	cs.have[kind] = nil // until it was answered
	return nil
}

func (cs *commandStreams) opened(st *spdystream.Stream) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	kind := st.Headers().Get(streamType)
	cs.have[kind] = st
	delete(cs.missing, kind)
	if len(cs.missing) == 0 {
		close(cs.complete)
	}
}

// wait returns when every stream is there, or fails with what is missing.
func (cs *commandStreams) wait(ctx context.Context) error {
	t := time.NewTimer(creationTimeout)
	defer t.Stop()
	select {
	case <-cs.complete:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for streams: %w", context.Cause(ctx))
	case <-t.C:
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return fmt.Errorf("no stream %s within %s", strings.Join(slices.Sorted(maps.Keys(cs.missing)), ", "), creationTimeout)
}

// client leaves nil what is not there.
func (cs *commandStreams) client() *client {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := &client{}
	for kind, st := range cs.have {
		switch {
		case st == nil:
		case kind == stdinStream:
			c.stdin = st
		case kind == stdoutStream:
			c.stdout = st
		case kind == stderrStream:
			c.stderr = st
		case kind == errorStream:
			c.status = st
		case kind == resizeStream:
			c.resize = st
		}
	}
	return c
}

// openSPDY returns the client when it has opened every announced stream.
func (s *Server) openSPDY(ctx context.Context, w http.ResponseWriter, r *http.Request, streams want) (*client, error) {
	nc, version, err := upgradeSPDY(w, r, commandVersions)
	if err != nil {
		return nil, err
	}
	cs := newCommandStreams(streams, version)
	sp := &spdyStreams{admit: cs.admit, opened: cs.opened}
	if err = sp.serve(connOf(r), nc); err != nil {
		return nil, err
	}
	err = cs.wait(ctx)
	c := cs.client()
	c.structured, c.end = version == commandVersions[0], sp.end
	if err == nil {
		return c, nil
	}
	if c.status != nil && ctx.Err() == nil {
		err = errors.Join(err, statusOf(0, err).write(c.status, c.structured))
	}
	c.end()
	return nil, err
}
