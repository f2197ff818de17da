package bridge_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"gantry/internal/bridge"
	"gantry/internal/lab"
	"gantry/internal/pod"
)

func TestMain(m *testing.M) { lab.Main(m) }

// node is the builtin network as a server uses it: behind libcni.
type node struct {
	t     testing.TB
	state string
	cache string
	list  *libcni.NetworkConfigList
	cni   *libcni.CNIConfig

	bridge *bridge.Bridge
}

func newNode(t testing.TB) *node {
	t.Helper()
	n := &node{t: t, state: t.TempDir(), cache: t.TempDir()}
	n.configure(bridge.Conflist(bridge.Config{}))
	n.restart()
	t.Cleanup(n.clean)
	return n
}

func (n *node) configure(conflist []byte) {
	n.t.Helper()
	list, err := libcni.NetworkConfFromBytes(conflist)
	if err != nil {
		n.t.Fatal(err)
	}
	n.list = list
}

// restart is what a new process does with the state that an old one left.
func (n *node) restart() *bridge.Bridge {
	n.t.Helper()
	if n.bridge != nil {
		n.settle()
	}
	b, err := bridge.New(bridge.Options{StateDir: n.state, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		n.t.Fatal(err)
	}
	n.bridge = b
	n.cni = libcni.NewCNIConfigWithCacheDir([]string{"/usr/lib/cni"}, n.cache, b.Exec(plugins()))
	return b
}

func plugins() invoke.Exec {
	return &invoke.DefaultExec{RawExec: &invoke.RawExec{}, PluginDecoder: version.PluginDecoder{}}
}

// clean collects everything, as a restarted server without pods does.
func (n *node) clean() {
	n.restart()
	if err := n.gc(); err != nil {
		n.t.Errorf("collect what is left: %v", err)
	}
}

func (n *node) gc(keep ...*testPod) error {
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for _, p := range keep {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: p.id, IfName: "eth0"})
	}
	return n.cni.GCNetworkList(context.Background(), n.list, args)
}

// testPod is a network namespace with what the plugin gave it.
type testPod struct {
	*netNS
	id    string
	ports []port
	ips   []netip.Addr
}

// port is a host port as CNI's capability argument has it.
type port struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

func (p *testPod) v4() netip.Addr { return p.ips[0] }
func (p *testPod) v6() netip.Addr { return p.ips[1] }

func newPod(t testing.TB, ports ...port) *testPod {
	t.Helper()
	return &testPod{netNS: newNetNS(t), id: string(pod.NewKey()), ports: ports}
}

func (p *testPod) conf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: p.id, NetNS: p.path, IfName: "eth0",
		CapabilityArgs: map[string]any{"portMappings": p.ports},
	}
}

func (n *node) tryAdd(p *testPod) error {
	res, err := n.cni.AddNetworkList(context.Background(), n.list, p.conf())
	if err != nil {
		return err
	}
	r, err := types100.NewResultFromResult(res)
	if err != nil {
		return err
	}
	p.ips = nil
	for _, ip := range r.IPs {
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		p.ips = append(p.ips, a.Unmap())
	}
	return nil
}

func (n *node) add(p *testPod) *testPod {
	n.t.Helper()
	if err := n.tryAdd(p); err != nil {
		n.t.Fatalf("ADD: %v", err)
	}
	return p
}

func (n *node) del(p *testPod) {
	n.t.Helper()
	if err := n.cni.DelNetworkList(context.Background(), n.list, p.conf()); err != nil {
		n.t.Fatalf("DEL: %v", err)
	}
}

// settle waits until what has left is gone.
func (n *node) settle() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.bridge.Close(ctx); err != nil {
		n.t.Fatal(err)
	}
}

// left is everything that pods could leave on the node, for comparison.
func (n *node) left() string {
	n.t.Helper()
	n.settle()
	var leases []string
	for _, pattern := range []string{"*/leases/*.*", "*/leases/*:*", "*/attachments/*"} {
		found, _ := filepath.Glob(filepath.Join(n.state, pattern))
		leases = append(leases, found...)
	}
	var links []string
	for _, l := range strings.Split(run(n.t, "", "ip", "-o", "link"), "\n") {
		if fields := strings.Fields(l); len(fields) > 1 {
			links = append(links, fields[1]) // the rest says how far its pod has come up
		}
	}
	return fmt.Sprintf("leases %v\nlinks %v\nrules %s", leases, links, run(n.t, "", "nft", "-s", "list", "ruleset"))
}

// netNS is a network namespace of the test.
type netNS struct{ name, path string }

var netNSCount int

func newNetNS(t testing.TB) *netNS {
	t.Helper()
	netNSCount++
	ns := &netNS{name: fmt.Sprintf("test%d", netNSCount)}
	ns.path = "/var/run/netns/" + ns.name
	run(t, "", "ip", "netns", "add", ns.name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns.name).Run() })
	run(t, ns.name, "ip", "link", "set", "lo", "up")
	return ns
}

// run runs a command on the node, or in a namespace, and returns what it printed.
func run(t testing.TB, ns string, args ...string) string {
	t.Helper()
	out, err := try(ns, args...)
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

func try(ns string, args ...string) (string, error) {
	if ns != "" {
		args = append([]string{"ip", "netns", "exec", ns}, args...)
	}
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	return string(out), err
}
