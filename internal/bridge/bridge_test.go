package bridge_test

import (
	"testing"
)

func TestPodIsReachable(t *testing.T) {
	n := newNode(t)
	a, b := n.add(newPod(t)), n.add(newPod(t))
	for name, c := range map[string]struct {
		from string
		to   string
	}{
		"from the node over IPv4":      {"", a.v4().String()},
		"from the node over IPv6":      {"", a.v6().String()},
		"from another pod over IPv4":   {b.name, a.v4().String()},
		"from another pod over IPv6":   {b.name, a.v6().String()},
		"the gateway from a pod, IPv4": {a.name, "10.87.0.1"},
		"the gateway from a pod, IPv6": {a.name, "fd67:616e:7472:7900::1"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, c.from, "ping", "-c1", "-W2", c.to)
		})
	}
}

func TestDelLeavesNothing(t *testing.T) {
	n := newNode(t)
	first := n.add(newPod(t))
	before := n.left()
	p := n.add(newPod(t, port{8080, 80, "tcp", ""}, port{53, 53, "udp", "127.0.0.1"}))
	n.del(p)
	n.del(p)
	if after := n.left(); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
	n.del(first)
}
