package bridge_test

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gantry/internal/bridge"
)

func TestPodIsReachable(t *testing.T) {
	n := newNode(t)
	a, b := n.add(newPod(t)), n.add(newPod(t))
	serve(t, a.name, "a", "tcp", 80)
	for name, c := range map[string]struct {
		from string
		to   netip.Addr
		seen netip.Addr
	}{
		"from the node over IPv4":    {"", a.v4(), netip.MustParseAddr("10.87.0.1")},
		"from the node over IPv6":    {"", a.v6(), netip.MustParseAddr("fd67:616e:7472:7900::1")},
		"from another pod over IPv4": {b.name, a.v4(), b.v4()},
		"from another pod over IPv6": {b.name, a.v6(), b.v6()},
	} {
		t.Run(name, func(t *testing.T) {
			who, seen, err := ask(t, c.from, "tcp", hostPort(c.to, 80), patience)
			if err != nil || who != "a" || seen != c.seen {
				t.Errorf("%s answered and saw %s, %v; want a to see %s", who, seen, err, c.seen)
			}
		})
	}
}

func TestPodReachesOutsideAsTheNode(t *testing.T) {
	n := newNode(t)
	o := newOutside(t)
	p := n.add(newPod(t))
	serve(t, o.name, "outside", "tcp", 80)
	for there, node := range map[string]string{o.v4: o.nodeV4, o.v6: o.nodeV6} {
		who, seen, err := ask(t, p.name, "tcp", hostPort(there, 80), patience)
		if err != nil || who != "outside" || seen.String() != node {
			t.Errorf("%s: %s answered and saw %s, %v; want %s", there, who, seen, err, node)
		}
	}
}

func TestDelLeavesNothing(t *testing.T) {
	n := newNode(t)
	first := n.add(newPod(t))
	before := n.left()
	p := n.add(newPod(t, port{8080, 80, "tcp", ""}, port{53, 53, "udp", "127.0.0.1"}, port{70, 7, "sctp", "192.0.2.1"}))
	n.del(p)
	n.del(p)
	if after := n.left(); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
	n.del(first)
}

func TestDelWithoutNamespaceFreesTheLease(t *testing.T) {
	n := newNode(t)
	before := n.left()
	p := n.add(newPod(t))
	run(t, "", "ip", "netns", "del", p.name)
	n.del(p)
	n.clean()
	if after := n.left(); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

func TestDelOfWhatWasNeverAdded(t *testing.T) {
	n := newNode(t)
	before := n.left()
	n.del(newPod(t))
	if after := n.left(); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

func TestFailedAddLeavesNothing(t *testing.T) {
	n := newNode(t)
	n.add(newPod(t))
	before := n.left()
	p := newPod(t, port{8080, 80, "tcp", ""})
	run(t, p.name, "ip", "link", "add", "eth0", "type", "bridge")
	if err := n.tryAdd(p); err == nil {
		t.Fatal("ADD succeeded in a namespace that has an eth0")
	}
	p.path = "/var/run/netns/none"
	if err := n.tryAdd(p); err == nil || !strings.Contains(err.Error(), "/var/run/netns/none") {
		t.Fatalf("ADD without a namespace: %v", err)
	}
	if after := n.left(); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

func TestAddressIsNotUsedAgainAtOnce(t *testing.T) {
	n := newNode(t)
	p := n.add(newPod(t))
	n.del(p)
	n.restart()
	if q := n.add(newPod(t)); q.v4() == p.v4() || q.v6() == p.v6() {
		t.Errorf("%v was given to the next pod", p.ips)
	}
}

func TestSubnetWithoutFreeAddress(t *testing.T) {
	n := newNode(t)
	n.configure(bridge.Conflist(bridge.Config{Subnets: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/30")}}))
	p := n.add(newPod(t))
	if err := n.tryAdd(newPod(t)); err == nil || !strings.Contains(err.Error(), "no address is free in [198.51.100.0/30]") {
		t.Errorf("a second pod in a subnet for one: %v", err)
	}
	n.del(p)
	n.add(newPod(t))
}

func TestParallelAddsGetDistinctAddresses(t *testing.T) {
	n := newNode(t)
	pods := make([]*testPod, 24)
	for i := range pods {
		pods[i] = newPod(t, port{9000 + i, 80, "tcp", ""})
	}
	var wg sync.WaitGroup
	for _, p := range pods {
		wg.Go(func() {
			if err := n.tryAdd(p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	owner := make(map[netip.Addr]string)
	for _, p := range pods {
		for _, ip := range p.ips {
			if owner[ip] != "" {
				t.Errorf("%s was given to %s and %s", ip, owner[ip], p.name)
			}
			owner[ip] = p.name
		}
	}
	if len(owner) != 2*len(pods) {
		t.Errorf("%d addresses for %d pods", len(owner), len(pods))
	}
}

// TestTwoProcessesNeverGiveOneAddress has two of them on one state directory, as when a server is
// started before the old one has ended.
func TestTwoProcessesNeverGiveOneAddress(t *testing.T) {
	n := newNode(t)
	other := *n
	other.restart()
	var wg sync.WaitGroup
	pods := make([]*testPod, 12)
	for i := range pods {
		pods[i] = newPod(t)
		process := []*node{n, &other}[i%2]
		wg.Go(func() {
			if err := process.tryAdd(pods[i]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := make(map[netip.Addr]bool)
	for _, p := range pods {
		for _, ip := range p.ips {
			if seen[ip] {
				t.Errorf("%s was given twice", ip)
			}
			seen[ip] = true
		}
	}
}

func TestCrashLeftoversAreCollected(t *testing.T) {
	n := newNode(t)
	keep := n.add(newPod(t, port{8080, 80, "tcp", ""}))
	before := n.left()
	for i := range 3 {
		n.add(newPod(t, port{9000 + i, 80, "udp", ""}))
	}
	n.restart()
	if err := n.gc(keep); err != nil {
		t.Fatal(err)
	}
	if after := n.left(); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
	serve(t, keep.name, "kept", "tcp", 80)
	if _, _, err := ask(t, "", "tcp", "127.0.0.1:8080", patience); err != nil {
		t.Errorf("the pod that was kept is cut off: %v", err)
	}
}

func TestNothingIsLeftAfterTheLastPod(t *testing.T) {
	n := newNode(t)
	before := n.left()
	p := n.add(newPod(t, port{8080, 80, "tcp", ""}))
	n.del(p)
	n.clean()
	if after := n.left(); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

func TestAnotherServersBridgeIsRefused(t *testing.T) {
	n := newNode(t)
	n.add(newPod(t))
	other := newNode(t)
	if err := other.tryAdd(newPod(t)); err == nil || !strings.Contains(err.Error(), "state directory "+n.state) {
		t.Errorf("ADD to the bridge of another server: %v", err)
	}
}

func TestSubnetOfAnotherLinkIsRefused(t *testing.T) {
	newOutside(t)
	n := newNode(t)
	n.configure(bridge.Conflist(bridge.Config{Subnets: []netip.Prefix{netip.MustParsePrefix("192.0.0.0/16")}}))
	if err := n.tryAdd(newPod(t)); err == nil || !strings.Contains(err.Error(), "on uplink") {
		t.Errorf("ADD in the uplink's subnet: %v", err)
	}
}

func TestWhatOthersRemoveComesBack(t *testing.T) {
	for name, remove := range map[string][]string{
		"the rules":  {"nft", "flush", "ruleset"},
		"the bridge": {"ip", "link", "del", bridge.DefaultBridge},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			p := n.add(newPod(t, port{8080, 80, "tcp", ""}))
			serve(t, p.name, "p", "tcp", 80)
			run(t, "", remove...)
			if err := n.cni.GetStatusNetworkList(t.Context(), n.list); err != nil {
				t.Fatal(err)
			}
			if _, _, err := ask(t, "", "tcp", "127.0.0.1:8080", patience); err != nil {
				t.Errorf("host port after STATUS: %v", err)
			}
		})
	}
}

func TestOtherPluginsMayFollow(t *testing.T) {
	n := newNode(t)
	n.configure([]byte(`{"cniVersion": "1.0.0", "name": "chained", "plugins": [
		{"type": "gantry-bridge", "subnets": ["10.9.0.0/24"], "capabilities": {"portMappings": true}},
		{"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.log_martians": "1"}}]}`))
	p := newPod(t)
	if err := n.tryAdd(p); err != nil {
		t.Fatal(err)
	}
	if got := run(t, p.name, "cat", "/proc/sys/net/ipv4/conf/eth0/log_martians"); strings.TrimSpace(got) != "1" {
		t.Errorf("the second plugin did nothing: log_martians = %s", got)
	}
	if len(p.ips) != 1 || p.ips[0].String() != "10.9.0.2" {
		t.Errorf("addresses %v", p.ips)
	}
	if err := n.cni.CheckNetworkList(t.Context(), n.list, p.conf()); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	run(t, p.name, "ip", "addr", "flush", "dev", "eth0")
	if err := n.cni.CheckNetworkList(t.Context(), n.list, p.conf()); err == nil {
		t.Error("CHECK did not notice that the address is gone")
	}
	n.del(p)
}

func TestVersionAnswers(t *testing.T) {
	n := newNode(t)
	caps, err := n.cni.ValidateNetworkList(t.Context(), n.list)
	if err != nil || !slices.Equal(caps, []string{"portMappings"}) {
		t.Errorf("capabilities %v, %v", caps, err)
	}
}

// TestTimeOfAPod logs what a pod costs; a hundred times a plugin process's cost would be a mistake.
func TestTimeOfAPod(t *testing.T) {
	n := newNode(t)
	n.add(newPod(t))
	for name, ports := range map[string][]port{"without host ports": nil, "with two host ports": {{8080, 80, "tcp", ""}, {8443, 443, "tcp", ""}}} {
		var adds, dels []time.Duration
		for range 50 {
			p := newPod(t, ports...)
			began := time.Now()
			n.add(p)
			adds = append(adds, time.Since(began))
			began = time.Now()
			n.del(p)
			dels = append(dels, time.Since(began))
			run(t, "", "ip", "netns", "del", p.name)
		}
		slices.Sort(adds)
		slices.Sort(dels)
		t.Logf("%s: median ADD %v, DEL %v; slowest ADD %v, DEL %v", name, adds[25], dels[25], adds[49], dels[49])
	}
}

// A link-local address of a port would cost every pod that comes later a look at it.
func TestPortsHaveNoAddress(t *testing.T) {
	n := newNode(t)
	n.add(newPod(t))
	port := strings.TrimSuffix(strings.Fields(run(t, "", "ip", "-o", "link", "show", "master", "gantry0"))[1], ":")
	port, _, _ = strings.Cut(port, "@")
	if off := strings.TrimSpace(run(t, "", "sysctl", "-n", "net.ipv6.conf."+port+".disable_ipv6")); off != "1" {
		t.Errorf("IPv6 of the port: disable_ipv6 is %q", off)
	}
	if have := run(t, "", "ip", "-o", "addr", "show", "dev", port); have != "" {
		t.Errorf("the port has addresses:\n%s", have)
	}
}
