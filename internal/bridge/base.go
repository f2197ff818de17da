package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ensure makes what all pods share, or makes sure that it is still there: forwarding, the bridge
// with its addresses, our nftables table, and our packets' way through the tables of others. It is
// called for every pod, and cheap when nothing is amiss. Callers hold s.mu.
func (s *segment) ensure(ctx context.Context, mtu int, subnets []netip.Prefix) error {
	v4 := slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Addr().Is4() })
	v6 := slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Addr().Is6() })
	if err := s.forward(v4, v6); err != nil {
		return err
	}
	if err := s.ensureBridge(mtu, subnets); err != nil {
		return err
	}
	exists, err := s.tableExists()
	if err != nil {
		return err
	}
	if !exists || !s.base.table {
		if err := s.buildTable(); err != nil {
			return err
		}
		s.base.table = true
	}
	s.acceptElsewhere(ctx)
	return nil
}

func (s *segment) ensureBridge(mtu int, subnets []netip.Prefix) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(s.name)
	if err != nil && !isNoLink(err) {
		return fmt.Errorf("bridge %s: %w", s.name, err)
	}
	known := err == nil && link.Attrs().Index == s.base.index
	if known && !slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return !slices.Contains(s.base.subnets, p) }) {
		return nil
	}
	if err = overlap(h, s.name, subnets); err != nil {
		return err
	}
	if link, err = s.ownBridge(h, link, mtu); err != nil {
		return err
	}
	if s.base.subnets, err = s.setUp(h, link, subnets); err != nil {
		return err
	}
	s.base.index, s.base.table = link.Attrs().Index, false
	return s.plugAgain(h)
}

// ownBridge makes the bridge, or takes the one that is there: made by an administrator (no alias of
// ours), by a server with this state directory, or by one whose pods are all gone.
func (s *segment) ownBridge(h *netlink.Handle, link netlink.Link, mtu int) (netlink.Link, error) {
	alias := bridgeAlias + s.owner
	if link == nil {
		return makeBridge(h, s.name, alias, mtu)
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("link %s is no bridge but a %s: %w", s.name, link.Type(), errdefs.ErrFailedPrecondition)
	}
	have := link.Attrs().Alias
	if !strings.HasPrefix(have, bridgeAlias) || have == alias {
		return link, nil
	}
	ports, err := portsOf(h, link.Attrs().Index)
	if err != nil {
		return nil, err
	}
	if len(ports) > 0 {
		return nil, fmt.Errorf("bridge %s serves the pods of the server with state directory %s: %w",
			s.name, strings.TrimPrefix(have, bridgeAlias), errdefs.ErrFailedPrecondition)
	}
	return link, h.LinkSetAlias(link, alias)
}

// bridgeAlias begins the alias of a bridge that we made; the state directory follows.
const bridgeAlias = "gantry "

// setUp gives the bridge its addresses and returns all its subnets: those of running pods stay
// when the configuration has changed.
func (s *segment) setUp(h *netlink.Handle, link netlink.Link, subnets []netip.Prefix) ([]netip.Prefix, error) {
	v6 := slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Addr().Is6() })
	if err := ipv6Sysctls(s.node, s.name, v6); err != nil {
		return nil, err
	}
	// Host ports on 127.0.0.1; outside packets with such an address are dropped by our table.
	if err := setSysctls(s.node, "net/ipv4/conf/"+s.name, [2]string{"route_localnet", "1"}); err != nil {
		return nil, err
	}
	for _, p := range subnets {
		if err := h.AddrAdd(link, netlinkAddr(gateway(p), p.Bits())); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("address %s of %s: %w", gateway(p), s.name, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bridge %s up: %w", s.name, err)
	}
	addrs, err := addressesOf(h, link)
	if err != nil {
		return nil, fmt.Errorf("addresses of %s: %w", s.name, err)
	}
	var all []netip.Prefix
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok && !p.Addr().IsLinkLocalUnicast() {
			all = append(all, p.Masked())
		}
	}
	return all, nil
}

// plugAgain connects the pods that a bridge which was removed by hand has left unconnected.
func (s *segment) plugAgain(h *netlink.Handle) error {
	for _, rec := range s.records {
		link, err := h.LinkByName(rec.Link)
		if err != nil || link.Attrs().MasterIndex == s.base.index {
			continue // its pod is being removed, or all is well
		}
		if err := s.plug(h, link, rec.Container, s.base.index); err != nil {
			return fmt.Errorf("link %s: %w", rec.Link, err)
		}
	}
	return nil
}

// overlap refuses subnets that another link of the node has an address in: replies would go there.
func overlap(h *netlink.Handle, bridge string, subnets []netip.Prefix) error {
	links, err := Whole(h.LinkList)
	if err != nil {
		return fmt.Errorf("links: %w", err)
	}
	for _, link := range links {
		if link.Attrs().Name == bridge {
			continue
		}
		addrs, err := addressesOf(h, link)
		if err != nil {
			return fmt.Errorf("addresses of %s: %w", link.Attrs().Name, err)
		}
		for _, a := range addrs {
			have, _ := prefixOf(a.IPNet)
			for _, p := range subnets {
				if p.Overlaps(have) {
					return fmt.Errorf("subnet %s overlaps with %s on %s, choose another: %w", p, have, link.Attrs().Name, errdefs.ErrFailedPrecondition)
				}
			}
		}
	}
	return nil
}

// portsOf returns the links whose master is the bridge with this index.
func portsOf(h *netlink.Handle, bridge int) ([]netlink.Link, error) {
	links, err := Whole(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	return slices.DeleteFunc(links, func(l netlink.Link) bool { return l.Attrs().MasterIndex != bridge }), nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits), ok
}

func addressesOf(h *netlink.Handle, link netlink.Link) ([]netlink.Addr, error) {
	return Whole(func() ([]netlink.Addr, error) { return h.AddrList(link, unix.AF_UNSPEC) })
}
