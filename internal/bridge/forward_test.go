package bridge_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"gantry/internal/bridge"
)

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// TestForwardPolicyDrop is a node whose other packet filter drops what it does not know, as dockerd
// and many administrators set it.
func TestForwardPolicyDrop(t *testing.T) {
	flush := []string{"nft flush ruleset"}
	legacyFlush := []string{
		"iptables-legacy -P FORWARD ACCEPT", "iptables-legacy -F", "iptables-legacy -X",
		"ip6tables-legacy -P FORWARD ACCEPT", "ip6tables-legacy -F", "ip6tables-legacy -X",
	}
	for name, c := range map[string]struct {
		before, after []string
		chain         string // the command that lists where our rules must be
	}{
		"iptables":              {[]string{"iptables -P FORWARD DROP", "ip6tables -P FORWARD DROP"}, flush, "iptables -S FORWARD"},
		"iptables with dockerd": {docker("iptables", "ip6tables"), flush, "iptables -S DOCKER-USER"},
		"an administrator's nftables": {[]string{
			"nft add table inet filter",
			"nft add chain inet filter forward { type filter hook forward priority 0 ; policy drop ; }",
		}, flush, "nft list chain inet filter forward"},
		"legacy iptables":              {[]string{"iptables-legacy -P FORWARD DROP", "ip6tables-legacy -P FORWARD DROP"}, legacyFlush, "iptables-legacy -S FORWARD"},
		"legacy iptables with dockerd": {docker("iptables-legacy", "ip6tables-legacy"), legacyFlush, "iptables-legacy -S DOCKER-USER"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() { commands(t, c.after) })
			commands(t, c.before)
			chainBefore := run(t, "", strings.Fields(c.chain)...)
			n := newNode(t)
			everythingPasses(t, n)
			if got := run(t, "", strings.Fields(c.chain)...); !strings.Contains(got, bridge.DefaultBridge) {
				t.Errorf("%s: no rule of ours in\n%s", c.chain, got)
			}
			if found, err := bridge.Check(context.Background()); err != nil || !strings.Contains(strings.Join(found, "\n"), "drop") &&
				!strings.Contains(strings.Join(found, "\n"), "DROP") {
				t.Errorf("doctor's findings %q, %v", found, err)
			}
			n.clean()
			if got := run(t, "", strings.Fields(c.chain)...); got != chainBefore {
				t.Errorf("%s: after the last pod\n%sbefore\n%s", c.chain, got, chainBefore)
			}
		})
	}
}

func docker(names ...string) []string {
	var all []string
	for _, iptables := range names {
		all = append(all, iptables+" -P FORWARD DROP", iptables+" -N DOCKER-USER", iptables+" -A DOCKER-USER -j RETURN", iptables+" -I FORWARD -j DOCKER-USER")
	}
	return all
}

func commands(t *testing.T, lines []string) {
	t.Helper()
	for _, l := range lines {
		run(t, "", strings.Fields(l)...)
	}
}

func everythingPasses(t *testing.T, n *node) {
	t.Helper()
	o := newOutside(t)
	a, b := n.add(newPod(t, port{8080, 80, "tcp", ""})), n.add(newPod(t))
	serve(t, a.name, "a", "tcp", 80)
	serve(t, o.name, "outside", "tcp", 80)
	for name, c := range map[string]struct{ from, to string }{
		"pod to outside over IPv4":  {b.name, hostPort(o.v4, 80)},
		"pod to outside over IPv6":  {b.name, hostPort(o.v6, 80)},
		"pod to pod":                {b.name, hostPort(a.v4(), 80)},
		"outside to a host port":    {o.name, hostPort(o.nodeV4, 8080)},
		"outside to a port of IPv6": {o.name, hostPort(o.nodeV6, 8080)},
		"pod to its own host port":  {a.name, hostPort(o.nodeV4, 8080)},
	} {
		if _, _, err := ask(t, c.from, "tcp", c.to, patience); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	n.del(a)
	n.del(b)
}

func TestForwardingIsTurnedOn(t *testing.T) {
	n := newNode(t)
	names := []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"}
	for _, name := range names {
		run(t, "", "sysctl", "-q", "-w", name+"=0")
	}
	found, err := bridge.Check(context.Background())
	if err != nil || len(found) != len(names) {
		t.Errorf("doctor's findings %q, %v; want one for each of %v", found, err, names)
	}
	n.add(newPod(t))
	for _, name := range names {
		if got := strings.TrimSpace(run(t, "", "sysctl", "-n", name)); got != "1" {
			t.Errorf("%s = %s", name, got)
		}
	}
}
