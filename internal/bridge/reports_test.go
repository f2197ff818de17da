package bridge_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// reportListener tells which groups reports name that a link of a namespace receives.
type reportListener struct {
	t    testing.TB
	fd   int
	from net.HardwareAddr // whose reports count; nil: everybody's
}

func listenForReports(t testing.TB, ns, link string) *reportListener {
	t.Helper()
	l := &reportListener{t: t}
	err := in(t, ns, func() (err error) {
		if l.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		timeout := unix.NsecToTimeval(patience.Nanoseconds())
		ipv6 := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IPV6))
		return errors.Join(unix.Bind(l.fd, &unix.SockaddrLinklayer{Protocol: ipv6, Ifindex: i.Index}),
			unix.SetsockoptTimeval(l.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(l.fd) })
	return l
}

// until returns the groups of every report up to the first that names this one.
func (l *reportListener) until(last netip.Addr) (reports [][]netip.Addr) {
	l.t.Helper()
	frame := make([]byte, 2048)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		n, from, err := unix.Recvfrom(l.fd, frame, 0)
		if err != nil {
			break
		}
		sa, ok := from.(*unix.SockaddrLinklayer)
		if !ok || sa.Pkttype == unix.PACKET_OUTGOING || l.from != nil && !bytes.Equal(sa.Addr[:sa.Halen], l.from) {
			continue
		}
		groups := reported(frame[:n])
		if groups != nil {
			reports = append(reports, groups)
		}
		if slices.Contains(groups, last) {
			return reports
		}
	}
	l.t.Fatalf("no report of %s came, but %v", last, reports)
	return nil
}

// reported returns the groups that a packet reports (RFC 3810): it has a hop-by-hop header of 8 bytes.
func reported(packet []byte) (groups []netip.Addr) {
	const header = 40 + 8
	if len(packet) < header+8 || packet[6] != 0 || packet[40] != unix.IPPROTO_ICMPV6 || packet[header] != 143 {
		return nil
	}
	report := packet[header:]
	at := 8
	for range binary.BigEndian.Uint16(report[6:]) {
		group, _ := netip.AddrFromSlice(report[at+4 : at+20])
		groups = append(groups, group)
		at += 20 + 16*int(binary.BigEndian.Uint16(report[at+2:])) + 4*int(report[at+1])
	}
	return groups
}

func TestPodsDoNotHearOfEachOthersAddresses(t *testing.T) {
	own := netip.MustParsePrefix("ff02::1:ff00:0/104")
	n := newNode(t)
	other := n.add(newPod(t))
	node, pod := listenForReports(t, "", "gantry0"), listenForReports(t, other.name, "eth0")
	p := n.add(newPod(t))
	pod.from = macIn(t, p.name) // the node tells all pods of its own
	raw := p.v6().As16()
	group := own.Addr().As16()
	copy(group[13:], raw[13:])
	node.until(netip.AddrFrom16(group)) // what the bridge is told, so that it may look where the group is

	// Of a group that a program joins, everybody hears as ever; and gets what is sent to it.
	joined := netip.MustParseAddr("ff15::4242")
	serveGroup(t, p.name, joined)
	for _, groups := range pod.until(joined) {
		if !slices.ContainsFunc(groups, func(g netip.Addr) bool { return !own.Contains(g) }) {
			t.Errorf("another pod was told of %v", groups)
		}
	}
	to := hostPort(joined.String()+"%eth0", groupPort)
	if err := in(t, other.name, func() error { return sendToGroup(to) }); err != nil {
		t.Errorf("what one pod sends to a group that another has joined: %v", err)
	}
}

// macIn is that of a pod's link.
func macIn(t testing.TB, ns string) (mac net.HardwareAddr) {
	t.Helper()
	err := in(t, ns, func() error {
		eth, err := net.InterfaceByName("eth0")
		if err == nil {
			mac = eth.HardwareAddr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

const groupPort = 4242

// serveGroup answers what comes to a group.
func serveGroup(t testing.TB, ns string, group netip.Addr) {
	t.Helper()
	err := in(t, ns, func() error {
		eth, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		c, err := net.ListenMulticastUDP("udp6", eth, &net.UDPAddr{IP: group.AsSlice(), Port: groupPort, Zone: "eth0"})
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = c.Close() })
		go answerPackets(c, "member")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sendToGroup returns when a member has answered.
func sendToGroup(to string) error {
	c, err := net.ListenPacket("udp6", ":0")
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	addr, err := net.ResolveUDPAddr("udp6", to)
	if err != nil {
		return err
	}
	for end := time.Now().Add(patience); ; {
		if _, err = c.WriteTo([]byte("?"), addr); err != nil {
			return err
		}
		if err = c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		_, _, err = c.ReadFrom(make([]byte, 128))
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
			return err
		}
	}
}
