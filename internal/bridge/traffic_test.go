package bridge_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds the wait for an answer that must come; what must not come is waited for briefly.
const (
	patience = 30 * time.Second
	briefly  = 300 * time.Millisecond
)

// in runs fn in a namespace; "" is the node.
func in(t testing.TB, ns string, fn func() error) error {
	t.Helper()
	if ns == "" {
		return fn()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		node, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		fd, err := unix.Open("/var/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err == nil {
			err = fn()
		}
		done <- errors.Join(err, unix.Setns(node, unix.CLONE_NEWNET), unix.Close(node))
	}()
	return <-done
}

// serve answers each connection in a namespace with "name client-address", each packet with what it asks behind that.
func serve(t testing.TB, ns, name, network string, at int) {
	t.Helper()
	addr := fmt.Sprintf(":%d", at)
	err := in(t, ns, func() error {
		if strings.HasPrefix(network, "udp") {
			c, err := net.ListenPacket(network, addr)
			if err == nil {
				t.Cleanup(func() { _ = c.Close() })
				go answerPackets(c, name)
			}
			return err
		}
		l, err := net.Listen(network, addr)
		if err == nil {
			t.Cleanup(func() { _ = l.Close() })
			go answerConns(l, name)
		}
		return err
	})
	if err != nil {
		t.Fatalf("serve %s in %s: %v", network, name, err)
	}
}

func answerConns(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = fmt.Fprintf(c, "%s %s", name, c.RemoteAddr())
		_ = c.Close()
	}
}

func answerPackets(c net.PacketConn, name string) {
	buf := make([]byte, 64)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo([]byte(name+" "+from.String()+" "+string(buf[:n])), from)
	}
}

// ask connects from a namespace and returns who answered and the client's address as the server saw it.
func ask(t testing.TB, ns, network, to string, wait time.Duration) (who string, seen netip.Addr, err error) {
	t.Helper()
	var answer string
	err = in(t, ns, func() error {
		end := time.Now().Add(wait)
		c, dialErr := net.DialTimeout(network, to, wait)
		// The kernel gives a neighbour up whose link takes longer to come up than it asks for it.
		for errors.Is(dialErr, unix.EHOSTUNREACH) && time.Now().Before(end) {
			c, dialErr = net.DialTimeout(network, to, time.Until(end))
		}
		if dialErr != nil {
			return dialErr
		}
		defer func() { _ = c.Close() }()
		answer, dialErr = exchange(c, wait)
		return dialErr
	})
	if err != nil {
		return "", netip.Addr{}, err
	}
	who, from, _ := strings.Cut(answer, " ")
	return who, netip.MustParseAddrPort(from).Addr().Unmap(), nil
}

// exchange returns what is answered. A packet may be lost on the way, as before a link is up: it is sent again each
// second, and an answer to an earlier question does not count.
func exchange(c net.Conn, wait time.Duration) (string, error) {
	end := time.Now().Add(wait)
	if _, ok := c.(net.PacketConn); !ok {
		return say(c, "?", end)
	}
	question := rand.Text()
	for {
		again := time.Now().Add(time.Second)
		if end.Before(again) {
			again = end
		}
		answer, err := say(c, question, again)
		for err == nil {
			if said, ok := strings.CutSuffix(answer, " "+question); ok {
				return said, nil
			}
			answer, err = hear(c)
		}
		switch {
		case again.Equal(end):
			return "", err
		case errors.Is(err, unix.ECONNREFUSED): // it may be of an earlier packet
			<-time.After(10 * time.Millisecond)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return "", err
		}
	}
}

func say(c net.Conn, what string, deadline time.Time) (answer string, err error) {
	if err := c.SetDeadline(deadline); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte(what)); err != nil {
		return "", err
	}
	return hear(c)
}

func hear(c net.Conn) (string, error) {
	buf := make([]byte, 128)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

// hostPort is "address:port" for either IP family.
func hostPort(a any, p int) string { return net.JoinHostPort(fmt.Sprint(a), fmt.Sprint(p)) }

// outside is a machine on the node's other side: it has no route to the pods' addresses.
type outside struct {
	*netNS
	nodeV4, nodeV6 string // the node's addresses on its side
	v4, v6         string
}

func newOutside(t testing.TB) *outside {
	t.Helper()
	o := &outside{
		netNS: newNetNS(t), nodeV4: "192.0.2.1", nodeV6: "2001:db8::1", v4: "192.0.2.2", v6: "2001:db8::2",
	}
	// The kernel takes its time with a veth whose ends happen to have the same index.
	run(t, "", "ip", "link", "add", "uplink", "index", "77", "type", "veth", "peer", "name", "eth0", "netns", o.name)
	t.Cleanup(func() { _, _ = try("", "ip", "link", "del", "uplink") })
	for _, c := range []struct{ ns, link, v4, v6 string }{
		{"", "uplink", o.nodeV4, o.nodeV6}, {o.name, "eth0", o.v4, o.v6},
	} {
		run(t, c.ns, "sysctl", "-q", "-w", "net.ipv6.conf."+c.link+".accept_dad=0")
		run(t, c.ns, "ip", "addr", "add", c.v4+"/24", "dev", c.link)
		run(t, c.ns, "ip", "addr", "add", c.v6+"/64", "dev", c.link, "nodad")
		run(t, c.ns, "ip", "link", "set", c.link, "up")
	}
	return o
}
