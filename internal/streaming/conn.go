package streaming

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// vanishCheck is how often a connection is asked whether its client is still there.
const vanishCheck = 2 * time.Second

// conn is a connection with a context that ends with it: when it is closed from here, when the
// client closed it, or when it broke.
type conn struct {
	net.Conn
	ctx    context.Context
	cancel context.CancelFunc
	set    *connSet
	closed sync.Once
	moved  atomic.Bool // bytes have moved since watch looked
	heard  atomic.Bool // the client has sent some since closeWithin looked
}

// Read cancels the context at the end of the client's bytes. A client of these protocols never
// closes only its half: end of file means that it is gone.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.moved.Store(true)
		c.heard.Store(true)
	}
	if err != nil && !isTimeout(err) {
		c.cancel()
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if n > 0 {
		c.moved.Store(true)
	}
	if err != nil && !isTimeout(err) {
		c.cancel()
	}
	return n, err
}

// isTimeout finds the deadlines that net/http sets to interrupt its own reads.
func isTimeout(err error) bool {
	ne, ok := err.(net.Error) //nolint:errorlint // net.Conn returns it bare
	return ok && ne.Timeout()
}

// Close may be called again, which is no error: the protocol waits for a second after one.
func (c *conn) Close() (err error) {
	c.closed.Do(func() {
		c.cancel()
		c.set.remove(c)
		err = c.Conn.Close()
	})
	return err
}

// CloseWrite tells the client that no more comes.
func (c *conn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// closeWithin closes the connection unless its user does so before, when its client has sent nothing for d. One that
// sends, as a client that pings does, is still reading: what came in behind the close would be answered with a reset,
// and take away what is under way to the client.
func (c *conn) closeWithin(d time.Duration) {
	c.heard.Store(false)
	go func() {
		t := time.NewTicker(d)
		defer t.Stop()
		for range lingeringMost {
			select {
			case <-c.ctx.Done():
				return
			case <-t.C:
			}
			if !c.heard.Swap(false) && !c.polled(unix.POLLIN) {
				break
			}
		}
		_ = c.Close()
	}()
}

// watch ends the context when the client has closed the connection, also while nobody reads: a
// process that does not take its input stops the reading, and its client may leave meanwhile. It
// ends it as well when no byte has moved for idle.
func (c *conn) watch(idle time.Duration) {
	t := time.NewTicker(min(vanishCheck, idle))
	defer t.Stop()
	last := time.Now()
	for {
		select {
		case <-c.ctx.Done():
			return
		case now := <-t.C:
			if c.moved.Swap(false) {
				last = now
			}
			if now.Sub(last) >= idle || c.polled(unix.POLLRDHUP) {
				c.cancel()
			}
		}
	}
}

// polled says whether the socket is in one of these states, or in none that is good.
func (c *conn) polled(events int16) bool {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	is := false
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}} //nolint:gosec // descriptors are small
		n, perr := unix.Poll(fds, 0)
		is = perr == nil && n > 0
	})
	return is || err != nil
}

// listener makes every accepted connection a conn.
type listener struct {
	net.Listener
	conns *connSet
}

func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &conn{Conn: nc, ctx: ctx, cancel: cancel, set: l.conns}
	// Where the client is gone, nobody is served by a write that waits for it.
	context.AfterFunc(ctx, func() { _ = c.Close() })
	l.conns.add(c)
	return c, nil
}

// connSet are the open connections, hijacked or not.
type connSet struct {
	mu     sync.Mutex
	open   map[*conn]struct{} // guarded by mu
	closed bool               // guarded by mu
}

func (s *connSet) add(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		c.cancel()
		_ = c.Conn.Close()
		return
	}
	if s.open == nil {
		s.open = make(map[*conn]struct{})
	}
	s.open[c] = struct{}{}
}

func (s *connSet) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
}

func (s *connSet) closeAll() {
	s.mu.Lock()
	s.closed = true
	open := make([]*conn, 0, len(s.open))
	for c := range s.open {
		open = append(open, c)
	}
	s.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
}

type connKey struct{}

// connContext lets a handler find its connection, below TLS where there is TLS.
func connContext(ctx context.Context, nc net.Conn) context.Context {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, nc)
}

func connOf(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}
