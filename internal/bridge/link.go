package bridge

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gantry/internal/sysctl"
)

// linkPrefix begins the names of the veths' ends on the node; the rest is a hash of the attachment,
// so that an end is found when nothing else is known.
const linkPrefix = "gtr"

func linkName(id attachmentID) string {
	sum := sha256.Sum256([]byte(id.Container + "\x00" + id.IfName))
	return linkPrefix + hex.EncodeToString(sum[:6])
}

// macFor is derived from the address, so that neighbours' caches stay true when it is used again.
func macFor(addrs []netip.Addr) net.HardwareAddr {
	raw := addrs[0].AsSlice()
	return append(net.HardwareAddr{0x0a, 0x67}, raw[len(raw)-4:]...)
}

// wire is what connect needs to know of the bridge.
type wire struct {
	bridge  int // index
	mtu     int
	subnets []netip.Prefix
}

// connect makes the veth pair, one end a port of the bridge, the other the pod's configured interface.
func (s *segment) connect(rec *record, netns string, w *wire) (net.HardwareAddr, error) {
	ns, err := os.Open(netns)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()

	mac := macFor(rec.Addresses)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = rec.Link, w.mtu
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerNamespace = rec.IfName, mac, netlink.NsFd(int(ns.Fd()))
	if err = h.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("make veth %s in %s: %w", rec.IfName, netns, err)
	}
	host, err := h.LinkByName(rec.Link)
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", rec.Link, err)
	}
	if err := s.plug(h, host, rec.Container, w.bridge); err != nil {
		return nil, fmt.Errorf("link %s: %w", rec.Link, err)
	}
	if err := inside(netns, func(h *netlink.Handle) error { return configure(h, rec, w.subnets) }); err != nil {
		return nil, fmt.Errorf("configure %s in %s: %w", rec.IfName, netns, err)
	}
	return mac, nil
}

// plug makes the host's end a port of the bridge. A port has no address of its own, and no IPv6: the kernel would
// give it a link-local one that nobody can reach, with routes among which those of all ports are looked through,
// and would tell the pod of it by multicast. Hairpin mode lets a pod reach itself through a
// host port where the bridge hands frames to netfilter (bridge-nf-call-iptables).
func (s *segment) plug(h *netlink.Handle, host netlink.Link, container string, bridge int) error {
	name := host.Attrs().Name
	if _, err := s.node.Set("net/ipv6/conf/"+name+"/disable_ipv6", "1"); err != nil {
		return err
	}
	if err := h.LinkSetAlias(host, container); err != nil {
		return fmt.Errorf("alias: %w", err)
	}
	if err := h.LinkSetMasterByIndex(host, bridge); err != nil {
		return fmt.Errorf("port of %s: %w", s.name, err)
	}
	if err := h.LinkSetHairpin(host, true); err != nil {
		return fmt.Errorf("hairpin: %w", err)
	}
	return h.LinkSetUp(host)
}

// configure runs inside the pod's network namespace.
func configure(h *netlink.Handle, rec *record, subnets []netip.Prefix) error {
	eth, err := h.LinkByName(rec.IfName)
	if err != nil {
		return err
	}
	tree, err := sysctl.Open()
	if err != nil {
		return err
	}
	defer tree.Close()
	v6 := slices.ContainsFunc(rec.Addresses, netip.Addr.Is6)
	if err := ipv6Sysctls(tree, rec.IfName, v6); err != nil {
		return err
	}
	for i, addr := range rec.Addresses {
		if err := h.AddrAdd(eth, netlinkAddr(addr, subnets[i].Bits())); err != nil {
			return fmt.Errorf("address %s: %w", addr, err)
		}
	}
	if err := h.LinkSetUp(eth); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	for _, p := range subnets {
		route := &netlink.Route{LinkIndex: eth.Attrs().Index, Dst: defaultRoute(p), Gw: gateway(p).AsSlice()}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("default route by %s: %w", gateway(p), err)
		}
	}
	return nil
}

// disconnect removes the veth pair and returns when it is gone.
func (s *segment) disconnect(rec *record) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(rec.Link)
	if isNoLink(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", rec.Link, err)
	}
	if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", rec.Link, err)
	}
	return nil
}

// makeBridge makes the bridge with an address of its own: left to the kernel, it would change with
// the ports.
func makeBridge(h *netlink.Handle, name, alias string, mtu int) (netlink.Link, error) {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac)
	mac[0] = mac[0]&^1 | 2 // unicast, locally administered
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = name, mac, mtu
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make bridge %s: %w", name, err)
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", name, err)
	}
	if err := h.LinkSetAlias(link, alias); err != nil {
		return nil, fmt.Errorf("bridge %s: alias: %w", name, err)
	}
	return link, nil
}

// inside runs fn with a netlink handle of another network namespace, on a thread that ends with it:
// no thread that other goroutines use is ever in a foreign namespace.
func inside(netns string, fn func(*netlink.Handle) error) error {
	ns, err := os.Open(netns)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	done := make(chan error, 1)
	onOwnThread(func() {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			done <- fmt.Errorf("netlink: %w", err)
			return
		}
		defer h.Close()
		done <- fn(h)
	})
	return <-done
}

// onOwnThread runs fn on a thread that ends afterwards. The main thread does not end, and stands for
// the process in /proc, so it is kept out of the way.
func onOwnThread(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onOwnThread(fn)
			runtime.UnlockOSThread()
			return
		}
		fn()
	}()
	<-done
}

// netlinkAddr skips duplicate address detection, so that an address works at once.
func netlinkAddr(addr netip.Addr, bits int) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}}
	if addr.Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func defaultRoute(p netip.Prefix) *net.IPNet {
	bits := p.Addr().BitLen()
	return &net.IPNet{IP: make(net.IP, bits/8), Mask: net.CIDRMask(0, bits)}
}

func isNoLink(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none)
}

// result is what CNI's bridge plugin would print.
func result(bridge string, rec *record, sb *sandbox) *types100.Result {
	res := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: bridge}, {Name: rec.Link}, {Name: rec.IfName, Mac: sb.mac.String(), Sandbox: sb.netns},
		},
	}
	for i, addr := range rec.Addresses {
		p := sb.subnets[i]
		gw := net.IP(gateway(p).AsSlice())
		res.IPs = append(res.IPs, &types100.IPConfig{
			Interface: types100.Int(2),
			Address:   net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(p.Bits(), addr.BitLen())},
			Gateway:   gw,
		})
		res.Routes = append(res.Routes, &types.Route{Dst: *defaultRoute(p), GW: gw})
	}
	return res
}
