package bridge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"gantry/internal/sysctl"
)

// segment is one bridge with everything that belongs to it.
type segment struct {
	name   string // the bridge's and the nftables table's
	owner  string // marks the bridge as ours: the state directory
	boot   string
	dir    string // of the records
	leases leases
	node   *sysctl.Tree // of the node's namespaces
	log    *slog.Logger
	hook   func(point string) // never nil

	mu      sync.Mutex
	records map[attachmentID]*record  // guarded by mu
	live    map[attachmentID]struct{} // guarded by mu; begun by this process, spared by GC
	claims  claims                    // guarded by mu
	base    base                      // guarded by mu
	told    map[string]struct{}       // guarded by mu; what was logged once
	checked map[checkKind]time.Time   // guarded by mu; when other tables were looked at
}

// base is what all pods share, as this process last saw it.
type base struct {
	index   int            // of the bridge; 0: not looked at yet
	subnets []netip.Prefix // for which the bridge has an address
	table   bool           // built by this process
}

// add connects a pod. After an error nothing of it is left.
func (s *segment) add(ctx context.Context, id attachmentID, netns string, conf *pluginConf) (res *types100.Result, err error) {
	if err = s.remove(id); err != nil {
		return nil, fmt.Errorf("remove what is there: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.remove(id))
		}
	}()
	subnets, err := s.usable(conf.Subnets)
	if err != nil {
		return nil, err
	}
	rec, index, err := s.reserve(ctx, id, conf, subnets)
	if err != nil {
		return nil, err
	}
	s.hook("bridge/reserved")
	if err = context.Cause(ctx); err != nil {
		return nil, err
	}
	mac, err := s.connect(rec, netns, &wire{bridge: index, mtu: conf.MTU, subnets: subnets})
	if err != nil {
		return nil, err
	}
	s.hook("bridge/connected")
	if err := s.openPorts(rec.Ports); err != nil {
		return nil, err
	}
	s.hook("bridge/ports opened")
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return result(s.name, rec, &sandbox{netns: netns, mac: mac, subnets: subnets}), nil
}

// usable leaves out IPv6 where the kernel has none.
func (s *segment) usable(subnets []netip.Prefix) ([]netip.Prefix, error) {
	if _, err := s.node.Read("net/ipv6/conf/all/forwarding"); err == nil {
		return subnets, nil
	}
	kept := slices.DeleteFunc(slices.Clone(subnets), func(p netip.Prefix) bool { return p.Addr().Is6() })
	if len(kept) == 0 {
		return nil, errors.New("the configuration has IPv6 subnets only, and the kernel no IPv6")
	}
	return kept, nil
}

// reserve makes sure of what all pods share, and takes addresses and host ports for one.
func (s *segment) reserve(ctx context.Context, id attachmentID, conf *pluginConf, subnets []netip.Prefix) (*record, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live[id] = struct{}{}
	if err := s.ensure(ctx, conf.MTU, subnets); err != nil {
		return nil, 0, err
	}
	// Refused before an address is spent on it.
	gateways := make([]netip.Addr, 0, len(subnets))
	for _, p := range subnets {
		gateways = append(gateways, gateway(p))
	}
	rules, err := portRules(conf.Runtime.Ports, gateways)
	if err != nil {
		return nil, 0, err
	}
	if err = s.claims.check(rules); err != nil {
		return nil, 0, err
	}
	rec := s.newRecord(id)
	if rec.Addresses, err = s.leases.take(id, subnets); err != nil {
		return nil, 0, err
	}
	if rec.Ports, err = portRules(conf.Runtime.Ports, rec.Addresses); err != nil {
		return nil, 0, err
	}
	s.records[id] = rec
	s.claims.add(id, rec.Ports)
	return rec, s.base.index, s.writeRecord(id, rec)
}

// remove takes back whatever an attachment has; one that has nothing is no error. A lease is free
// only when the veth is gone, and what failed is tried again by the next call.
func (s *segment) remove(id attachmentID) error {
	s.mu.Lock()
	rec := s.records[id]
	s.mu.Unlock()
	if rec == nil {
		rec = s.newRecord(id)
	}
	// Side by side, because the kernel lets each wait until no packet can be on its way.
	closed := make(chan error, 1)
	go func() { closed <- s.closePorts(rec.Ports) }()
	if err := errors.Join(s.disconnect(rec), <-closed); err != nil {
		return err
	}
	s.hook("bridge/disconnected")
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.live, id)
	if s.records[id] == nil {
		return nil
	}
	if err := s.leases.release(id, rec.Addresses); err != nil {
		return fmt.Errorf("release lease: %w", err)
	}
	s.hook("bridge/lease released")
	if err := os.Remove(s.recordPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record: %w", err)
	}
	s.claims.remove(id, rec.Ports)
	delete(s.records, id)
	return nil
}

// check fails when something that add made is not there any more.
func (s *segment) check(id attachmentID, netns string) error {
	s.mu.Lock()
	rec, index := s.records[id], s.base.index
	s.mu.Unlock()
	if rec == nil {
		return fmt.Errorf("%s %s is not attached", id.Container, id.IfName)
	}
	host, err := netlink.LinkByName(rec.Link)
	if err != nil {
		return fmt.Errorf("link %s: %w", rec.Link, err)
	}
	if index != 0 && host.Attrs().MasterIndex != index {
		return fmt.Errorf("link %s is no port of %s", rec.Link, s.name)
	}
	return inside(netns, func(h *netlink.Handle) error {
		eth, err := h.LinkByName(id.IfName)
		if err != nil {
			return fmt.Errorf("link %s: %w", id.IfName, err)
		}
		have, err := addressesOf(h, eth)
		if err != nil {
			return fmt.Errorf("addresses of %s: %w", id.IfName, err)
		}
		for _, want := range rec.Addresses {
			if !slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IP.Equal(want.AsSlice()) }) {
				return fmt.Errorf("link %s has lost its address %s", id.IfName, want)
			}
		}
		return nil
	})
}

// status fails when pods could not be connected. Where pods are, it mends what others may have
// removed since, because it is called often.
func (s *segment) status(ctx context.Context, conf *pluginConf) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.records) == 0 {
		_, err := s.tableExists()
		return err
	}
	subnets, err := s.usable(conf.Subnets)
	if err != nil {
		return err
	}
	return s.ensure(ctx, conf.MTU, subnets)
}

// sandbox is the pod's side of a result.
type sandbox struct {
	netns   string
	mac     net.HardwareAddr
	subnets []netip.Prefix
}
