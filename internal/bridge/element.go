package bridge

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// openPorts adds a pod's host ports to the maps.
func (s *segment) openPorts(rules []portRule) error {
	if len(rules) == 0 {
		return nil
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	if err = s.addElements(c, rules); err != nil {
		return err
	}
	err = c.Flush()
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("one of the host ports %v is in the nftables table %s already: %w", rules, s.name, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return fmt.Errorf("open host ports: %w", err)
	}
	return flushUDP(rules)
}

// closePorts removes a pod's host ports; what is not there is no error.
func (s *segment) closePorts(rules []portRule) error {
	if len(rules) == 0 {
		return nil
	}
	err := s.deleteElements(rules)
	if errors.Is(err, unix.ENOENT) {
		// One that is missing undoes the transaction for all.
		for _, r := range rules {
			if err = s.deleteElements([]portRule{r}); errors.Is(err, unix.ENOENT) {
				err = nil
			}
			if err != nil {
				break
			}
		}
	}
	if err != nil {
		return fmt.Errorf("close host ports: %w", err)
	}
	return flushUDP(rules)
}

func (s *segment) addElements(c *nftables.Conn, rules []portRule) error {
	for _, r := range rules {
		m, key := s.element(r)
		value := append(r.Target.Addr().AsSlice(), padded(r.Target.Port())...)
		if err := c.SetAddElements(m, []nftables.SetElement{{Key: key, Val: value}}); err != nil {
			return fmt.Errorf("host port %s: %w", r, err)
		}
	}
	return nil
}

func (s *segment) deleteElements(rules []portRule) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	for _, r := range rules {
		m, key := s.element(r)
		if err := c.SetDeleteElements(m, []nftables.SetElement{{Key: key}}); err != nil {
			return err
		}
	}
	return c.Flush()
}

// element returns a rule's map and its key there.
func (s *segment) element(r portRule) (*nftables.Set, []byte) {
	f := families()[0]
	if !f.has(r.Host.Addr()) {
		f = families()[1]
	}
	exact, anyAddr := s.maps(f)
	key := []byte{r.number(), 0, 0, 0}
	if r.Host.Addr().IsUnspecified() {
		return anyAddr, append(key, padded(r.Host.Port())...)
	}
	key = append(key, r.Host.Addr().AsSlice()...)
	return exact, append(key, padded(r.Host.Port())...)
}

// padded is a port as it lies in a register of 32 bits.
func padded(port uint16) []byte { return append(binaryutil.BigEndian.PutUint16(port), 0, 0) }

// flushUDP forgets the UDP flows to host ports: one that goes on would keep its old way, because
// only the first packet of a flow is translated anew.
func flushUDP(rules []portRule) error {
	byFamily := make(map[netlink.InetFamily][]netlink.CustomConntrackFilter)
	for _, r := range rules {
		if r.Protocol != pod.UDP {
			continue
		}
		f := &netlink.ConntrackFilter{}
		if err := f.AddProtocol(unix.IPPROTO_UDP); err != nil {
			return fmt.Errorf("conntrack: %w", err)
		}
		if err := f.AddPort(netlink.ConntrackOrigDstPort, r.Host.Port()); err != nil {
			return fmt.Errorf("conntrack: %w", err)
		}
		if !r.Host.Addr().IsUnspecified() {
			if err := f.AddIP(netlink.ConntrackOrigDstIP, r.Host.Addr().AsSlice()); err != nil {
				return fmt.Errorf("conntrack: %w", err)
			}
		}
		fam := netlink.InetFamily(unix.AF_INET)
		if r.Host.Addr().Is6() {
			fam = unix.AF_INET6
		}
		byFamily[fam] = append(byFamily[fam], f)
	}
	for fam, filters := range byFamily {
		forget := func() (uint, error) { return netlink.ConntrackDeleteFilters(netlink.ConntrackTable, fam, filters...) }
		if _, err := Whole(forget); err != nil {
			return fmt.Errorf("forget UDP flows: %w", err)
		}
	}
	return nil
}
