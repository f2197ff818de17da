package e2e_test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

// TestHostPorts reaches a pod's page on a port of the node: on loopback, on the node's own address,
// and from another host.
func TestHostPorts(t *testing.T) {
	for _, env := range []struct {
		name    string
		options node.Options
	}{{"builtin network", node.Options{}}, {"CNI", node.Options{Network: "cni"}}} {
		t.Run(env.name, func(t *testing.T) {
			n := node.Start(t, env.options)
			ref := warm(t, n)
			outside := otherHost(t)
			const port = 18080
			ports := []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 8080, HostPort: port}}
			first := n.Sandbox("first") // portmap keeps the chains that it made for its first host port
			first.PortMappings = ports
			n.RemovePod(n.RunPod(first))
			leavesNothing(t, n)
			sandbox := n.Sandbox("web")
			sandbox.PortMappings = ports
			pod, container := n.Launch(sandbox, node.Container("server", ref, "sh", "-c", server))
			awaitPage(n, container)
			ip := n.Pod(pod).Network.Ip
			contains(t, "pod address", get(t, "http://"+netip.AddrPortFrom(netip.MustParseAddr(ip), 8080).String()+"/"), "a page")
			contains(t, "host port on loopback", get(t, fmt.Sprintf("http://127.0.0.1:%d/", port)), "a page")
			contains(t, "host port on the node's address", get(t, fmt.Sprintf("http://%s:%d/", nodeAddress, port)), "a page")
			contains(t, "host port from outside", outside.run(t, "busybox", "wget", "-q", "-O-", fmt.Sprintf("http://%s:%d/", nodeAddress, port)), "a page")
			if out := n.Exec(container, "wget", "-q", "-O-", fmt.Sprintf("http://%s:%d/", nodeAddress, port)); !strings.Contains(out, "a page") {
				t.Errorf("host port from the pod itself: %q", out)
			}
			n.RemovePod(pod)
		})
	}
}

// TestForwardPolicyOfAnotherTable has what dockerd leaves: a FORWARD chain that drops.
func TestForwardPolicyOfAnotherTable(t *testing.T) {
	for name, policy := range map[string][]string{
		"iptables drops": {"iptables -P FORWARD DROP", "ip6tables -P FORWARD DROP"},
		"DOCKER-USER is there": {
			"iptables -N DOCKER-USER || iptables -L DOCKER-USER", "iptables -A DOCKER-USER -j RETURN",
			"iptables -A FORWARD -j DOCKER-USER", "iptables -P FORWARD DROP",
		},
	} {
		t.Run(name, func(t *testing.T) {
			outside := otherHost(t)
			t.Cleanup(func() {
				for _, c := range []string{
					"iptables -P FORWARD ACCEPT", "ip6tables -P FORWARD ACCEPT", "iptables -F FORWARD",
					"iptables -F DOCKER-USER", "iptables -X DOCKER-USER",
				} {
					_ = exec.Command("sh", "-c", c).Run() // not all of them were made
				}
			})
			for _, c := range policy {
				sh(t, c)
			}
			n := node.Start(t, node.Options{})
			ref := warm(t, n)
			outside.serve(t, n)
			sandbox := n.Sandbox("walled")
			const port = 18081
			sandbox.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 8080, HostPort: port}}
			pod, container := n.Launch(sandbox, node.Container("server", ref, "sh", "-c", server))
			awaitPage(n, container)
			contains(t, "from the pod to outside", n.Exec(container, "wget", "-q", "-O-", "http://"+outsideAddress+":8080/"), "outside")
			contains(t, "from outside to the host port",
				outside.run(t, "busybox", "wget", "-q", "-O-", fmt.Sprintf("http://%s:%d/", nodeAddress, port)), "a page")
			n.RemovePod(pod)
		})
	}
}

func TestPodsReachEachOtherOverBothFamilies(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	leavesNothing(t, n)
	first, container := n.Launch(n.Sandbox("first"), node.Container("server", ref, "sh", "-c", server))
	second, client := n.Launch(n.Sandbox("second"), node.Container("client", ref, "sleep", "100000"))
	network := n.Pod(first).Network
	awaitPage(n, container)
	for _, ip := range []string{network.Ip, network.AdditionalIps[0].Ip} {
		url := "http://" + netip.AddrPortFrom(netip.MustParseAddr(ip), 8080).String() + "/"
		contains(t, url, n.Exec(client, "wget", "-q", "-O-", url), "a page")
	}
	n.RemovePod(first)
	n.RemovePod(second)
}

const (
	nodeAddress    = "192.0.2.1"
	outsideAddress = "192.0.2.2"
)

// host is another machine on the node's network: a network namespace.
type host struct{ netns string }

func otherHost(t *testing.T) host {
	t.Helper()
	h := host{netns: "outside"}
	sh(t, "ip netns add outside")
	// The link first: with the namespace it would go too, but later.
	t.Cleanup(func() { sh(t, "ip link del uplink; ip netns del outside") })
	for _, c := range []string{
		"ip link add uplink type veth peer name eth0 netns outside",
		"ip addr add " + nodeAddress + "/24 dev uplink", "ip link set uplink up",
		"ip -n outside addr add " + outsideAddress + "/24 dev eth0", "ip -n outside link set eth0 up", "ip -n outside link set lo up",
	} {
		sh(t, c)
	}
	return h
}

// run runs a command on the host and returns what it prints.
func (h host) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ip", append([]string{"netns", "exec", h.netns}, args...)...).CombinedOutput()
	if err != nil {
		t.Errorf("%s on the other host: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// serve serves a page on the host's port 8080.
func (h host) serve(t *testing.T, n *node.Node) {
	t.Helper()
	dir := t.TempDir()
	sh(t, "echo outside >"+dir+"/index.html")
	cmd := exec.Command("ip", "netns", "exec", h.netns, "busybox", "httpd", "-f", "-p", "8080", "-h", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	n.Eventually("the other host serves", func() bool {
		return exec.Command("ip", "netns", "exec", h.netns, "busybox", "wget", "-q", "-O-", "http://127.0.0.1:8080/").Run() == nil
	})
}

// awaitPage waits until the server in a container serves its page.
func awaitPage(n *node.Node, container string) {
	n.T().Helper()
	n.Eventually("the page is served", func() bool {
		r, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{
			ContainerId: container, Cmd: []string{"wget", "-q", "-O-", "http://127.0.0.1:8080/"}, Timeout: 10,
		})
		return err == nil && r.ExitCode == 0
	})
}

func sh(t *testing.T, command string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
}
