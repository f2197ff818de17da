package bridge_test

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/bridge"
)

func TestHostPortAnswers(t *testing.T) {
	for _, nf := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+nf, func(t *testing.T) {
			run(t, "", "sysctl", "-q", "-w", "net.bridge.bridge-nf-call-iptables="+nf, "net.bridge.bridge-nf-call-ip6tables="+nf)
			hostPortAnswers(t)
		})
	}
}

func hostPortAnswers(t *testing.T) {
	n := newNode(t)
	o := newOutside(t)
	a, b := n.add(newPod(t, port{8080, 80, "tcp", ""}, port{5353, 53, "udp", ""})), n.add(newPod(t))
	serve(t, a.name, "a", "tcp", 80)
	serve(t, a.name, "a", "udp4", 53)
	for name, c := range map[string]struct{ from, network, to string }{
		"from outside":                       {o.name, "tcp", hostPort(o.nodeV4, 8080)},
		"from outside over IPv6":             {o.name, "tcp", hostPort(o.nodeV6, 8080)},
		"from outside by UDP":                {o.name, "udp", hostPort(o.nodeV4, 5353)},
		"from the node on 127.0.0.1":         {"", "tcp", "127.0.0.1:8080"},
		"from the node on 127.0.0.1 by UDP":  {"", "udp", "127.0.0.1:5353"},
		"from the node on its address":       {"", "tcp", hostPort(o.nodeV4, 8080)},
		"from the node on its IPv6 address":  {"", "tcp", hostPort(o.nodeV6, 8080)},
		"from the pod itself":                {a.name, "tcp", hostPort(o.nodeV4, 8080)},
		"from the pod itself over IPv6":      {a.name, "tcp", hostPort(o.nodeV6, 8080)},
		"from the pod itself by the gateway": {a.name, "tcp", "10.87.0.1:8080"},
		"from another pod":                   {b.name, "tcp", hostPort(o.nodeV4, 8080)},
		"from another pod over IPv6":         {b.name, "tcp", hostPort(o.nodeV6, 8080)},
		"from another pod by UDP":            {b.name, "udp", hostPort(o.nodeV4, 5353)},
	} {
		t.Run(name, func(t *testing.T) {
			if who, _, err := ask(t, c.from, c.network, c.to, patience); err != nil || who != "a" {
				t.Errorf("%s: %q, %v", c.to, who, err)
			}
		})
	}
	if _, seen, _ := ask(t, o.name, "tcp", hostPort(o.nodeV4, 8080), patience); seen.String() != o.v4 {
		t.Errorf("the pod saw the client from outside as %s, want %s", seen, o.v4)
	}
	// localhost is ::1 first: a refusal lets clients go on to 127.0.0.1.
	if _, _, err := ask(t, "", "tcp", "[::1]:8080", patience); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("[::1]:8080: %v, want a refusal", err)
	}
}

func TestHostIPIsRespected(t *testing.T) {
	n := newNode(t)
	o := newOutside(t)
	local := n.add(newPod(t, port{8080, 80, "tcp", "127.0.0.1"}))
	public := n.add(newPod(t, port{8080, 80, "tcp", o.nodeV4}, port{8081, 80, "tcp", "0.0.0.0"}, port{8082, 80, "tcp", "::"}))
	serve(t, local.name, "local", "tcp", 80)
	serve(t, public.name, "public", "tcp", 80)
	for name, c := range map[string]struct{ from, to, who string }{
		"127.0.0.1 goes to its pod":         {"", "127.0.0.1:8080", "local"},
		"the node's address goes to its":    {o.name, hostPort(o.nodeV4, 8080), "public"},
		"another address goes nowhere":      {o.name, hostPort(o.nodeV6, 8080), ""},
		"0.0.0.0 is any IPv4 address":       {"", "127.0.0.1:8081", "public"},
		"0.0.0.0 is no IPv6 address":        {o.name, hostPort(o.nodeV6, 8081), ""},
		":: is any IPv6 address":            {o.name, hostPort(o.nodeV6, 8082), "public"},
		":: is no IPv4 address":             {o.name, hostPort(o.nodeV4, 8082), ""},
		"a port that nobody has is refused": {o.name, hostPort(o.nodeV4, 8083), ""},
	} {
		t.Run(name, func(t *testing.T) {
			who, _, err := ask(t, c.from, "tcp", c.to, patience)
			if who != c.who || (err == nil) != (c.who != "") {
				t.Errorf("%s: %q, %v; want %q", c.to, who, err, c.who)
			}
		})
	}
}

func TestHostPortConflict(t *testing.T) {
	n := newNode(t)
	first := n.add(newPod(t, port{8080, 80, "tcp", ""}))
	before := n.left()
	for name, p := range map[string]port{
		"the same port":                      {8080, 81, "tcp", ""},
		"one address of a port that has any": {8080, 81, "tcp", "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			err := n.tryAdd(newPod(t, port{9000, 80, "tcp", ""}, p))
			if !errors.Is(err, errdefs.ErrAlreadyExists) || !strings.Contains(err.Error(), first.id) {
				t.Errorf("%v; want AlreadyExists with the id of the pod that has it", err)
			}
			if after := n.left(); after != before {
				t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
	n.add(newPod(t, port{8080, 80, "udp", ""}, port{9000, 80, "tcp", ""}))
	n.del(first)
	n.add(newPod(t, port{8080, 80, "tcp", ""}))
}

func TestHostPortThatCannotBe(t *testing.T) {
	n := newNode(t)
	for name, c := range map[string]struct {
		port port
		want string
	}{
		"::1":                  {port{80, 80, "tcp", "::1"}, "use 127.0.0.1"},
		"no address":           {port{80, 80, "tcp", "localhost"}, "localhost"},
		"an unknown protocol":  {port{80, 80, "icmp", ""}, "icmp"},
		"a port out of bounds": {port{65536, 80, "tcp", ""}, "65535"},
		"no container port":    {port{80, 0, "tcp", ""}, "from 1"},
	} {
		t.Run(name, func(t *testing.T) {
			err := n.tryAdd(newPod(t, c.port))
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want InvalidArgument with %q", err, c.want)
			}
		})
	}
	n.configure(bridge.Conflist(bridge.Config{Network: "four", Bridge: "four0", Subnets: prefixes("10.9.0.0/24")}))
	if err := n.tryAdd(newPod(t, port{80, 80, "tcp", "2001:db8::1"})); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("an IPv6 host address for a pod without: %v", err)
	}
}

// TestUDPFlowFollowsItsPort keeps one client socket over the life of two pods: what the kernel
// remembers of the flow must not decide where it goes.
func TestUDPFlowFollowsItsPort(t *testing.T) {
	n := newNode(t)
	o := newOutside(t)
	n.add(newPod(t)) // the kernel remembers flows only where there are rules
	var client net.Conn
	err := in(t, o.name, func() (err error) {
		client, err = net.Dial("udp", hostPort(o.nodeV4, 5353))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if _, err := exchange(client, briefly); err == nil {
		t.Fatal("somebody answered before there was a pod")
	}
	for _, name := range []string{"first", "second"} {
		p := n.add(newPod(t, port{5353, 53, "udp", ""}))
		serve(t, p.name, name, "udp4", 53)
		if who, err := exchange(client, patience); err != nil || !strings.HasPrefix(who, name) {
			t.Errorf("%q answered, %v; want the %s pod", who, err, name)
		}
		n.del(p)
	}
}

// TestLoopbackAddressesFromOutsideAreDropped is CVE-2020-8558: a neighbour sends packets for
// 127.0.0.1 to the node, or says that they come from there.
func TestLoopbackAddressesFromOutsideAreDropped(t *testing.T) {
	n := newNode(t)
	p := n.add(newPod(t, port{8080, 80, "tcp", ""}))
	serve(t, "", "node", "tcp", 7777)
	if who, _, err := ask(t, p.name, "tcp", "10.87.0.1:7777", patience); err != nil || who != "node" {
		t.Fatalf("the node does not answer its own port: %q, %v", who, err)
	}
	run(t, p.name, "sysctl", "-q", "-w", "net.ipv4.conf.all.route_localnet=1")
	run(t, p.name, "ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
	run(t, p.name, "ip", "route", "add", "127.0.0.1", "via", "10.87.0.1", "src", p.v4().String())
	if who, _, err := ask(t, p.name, "tcp", "127.0.0.1:7777", briefly); err == nil {
		t.Errorf("%s answered a pod on its loopback address", who)
	}
	if got := run(t, "", "nft", "list", "chain", "inet", bridge.DefaultBridge, "localnet"); !strings.Contains(got, "drop") {
		t.Errorf("chain localnet: %s", got)
	}
}
