package bridge

import (
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// portMapping is one entry of CNI's capability argument "portMappings".
type portMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// portRule forwards one port of one IP family.
type portRule struct {
	Protocol pod.Protocol   `json:"protocol"`
	Host     netip.AddrPort `json:"host"`
	Target   netip.AddrPort `json:"target"`
}

func (p portRule) String() string { return string(p.Protocol) + " " + p.Host.String() }

// overlaps says whether a packet could mean both.
func (p portRule) overlaps(q portRule) bool {
	a, b := p.Host.Addr(), q.Host.Addr()
	return p.Protocol == q.Protocol && p.Host.Port() == q.Host.Port() && a.Is4() == b.Is4() &&
		(a == b || a.IsUnspecified() || b.IsUnspecified())
}

// number is the protocol's number in IP headers.
func (p portRule) number() byte {
	switch p.Protocol {
	case pod.UDP:
		return unix.IPPROTO_UDP
	case pod.SCTP:
		return unix.IPPROTO_SCTP
	default:
		return unix.IPPROTO_TCP
	}
}

// portRules turns mappings into rules for a pod's addresses: a mapping without host address is one
// for each family. What cannot be done is refused.
func portRules(mappings []portMapping, addrs []netip.Addr) ([]portRule, error) {
	var rules []portRule
	for _, m := range mappings {
		if m.HostPort == 0 {
			continue
		}
		more, err := m.rules(addrs)
		if err != nil {
			return nil, fmt.Errorf("host port %s %s:%d: %w: %w", m.Protocol, m.HostIP, m.HostPort, err, errdefs.ErrInvalidArgument)
		}
		for _, r := range more {
			for _, other := range rules {
				if r.overlaps(other) {
					return nil, fmt.Errorf("host port %s is asked for twice: %w", r, errdefs.ErrInvalidArgument)
				}
			}
			rules = append(rules, r)
		}
	}
	return rules, nil
}

func (m portMapping) rules(addrs []netip.Addr) ([]portRule, error) {
	if m.HostPort < 0 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 {
		return nil, fmt.Errorf("to port %d: a port is from 1 to 65535", m.ContainerPort)
	}
	switch pod.Protocol(m.Protocol) {
	case pod.TCP, pod.UDP, pod.SCTP:
	default:
		return nil, fmt.Errorf("protocol %q is none of tcp, udp, sctp", m.Protocol)
	}
	host, err := hostAddr(m.HostIP)
	if err != nil {
		return nil, err
	}
	var rules []portRule
	for _, target := range addrs {
		from := host
		if !host.IsValid() {
			from = unspecified(target)
		}
		if from.Is4() == target.Is4() {
			rules = append(rules, portRule{
				Protocol: pod.Protocol(m.Protocol),
				Host:     netip.AddrPortFrom(from, uint16(m.HostPort)),
				Target:   netip.AddrPortFrom(target, uint16(m.ContainerPort)),
			})
		}
	}
	if len(rules) == 0 {
		return nil, fmt.Errorf("the pod has no address of this IP family")
	}
	return rules, nil
}

// hostAddr is the zero Addr when text is empty.
func hostAddr(text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, err
	}
	addr = addr.Unmap()
	if addr.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("an address with a zone cannot be forwarded")
	}
	if addr == netip.IPv6Loopback() {
		return netip.Addr{}, fmt.Errorf("the kernel does not let packets to ::1 leave the node's loopback: use 127.0.0.1")
	}
	return addr, nil
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// claims tells who has which host port.
type claims map[claimKey][]claim

type claimKey struct {
	protocol pod.Protocol
	port     uint16
}

type claim struct {
	rule  portRule
	owner attachmentID
}

func (c claims) add(owner attachmentID, rules []portRule) {
	for _, r := range rules {
		k := claimKey{r.Protocol, r.Host.Port()}
		c[k] = append(c[k], claim{r, owner})
	}
}

// check returns an AlreadyExists error that names the pod which has one of the ports.
func (c claims) check(rules []portRule) error {
	for _, r := range rules {
		for _, other := range c[claimKey{r.Protocol, r.Host.Port()}] {
			if r.overlaps(other.rule) {
				return fmt.Errorf("host port %s: pod sandbox %s has %s: %w", r, other.owner.Container, other.rule, errdefs.ErrAlreadyExists)
			}
		}
	}
	return nil
}

func (c claims) remove(owner attachmentID, rules []portRule) {
	for _, r := range rules {
		k := claimKey{r.Protocol, r.Host.Port()}
		kept := c[k][:0]
		for _, other := range c[k] {
			if other.owner != owner {
				kept = append(kept, other)
			}
		}
		if c[k] = kept; len(kept) == 0 {
			delete(c, k)
		}
	}
}
