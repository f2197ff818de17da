package cni_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/cni"
	"gantry/internal/pod"
)

// ready is a script's answer to ADD.
const ready = `[ $CNI_COMMAND = ADD ] && echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.1.2.3/24"}]}'; exit 0`

// bridgeList is what an administrator writes for Debian's plugins; leases are kept in dir.
func bridgeList(dir string) string {
	return `{"cniVersion": "1.0.0", "name": "real", "plugins": [
		{"type": "loopback"},
		{"type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": true, "hairpinMode": true,
		 "ipam": {"type": "host-local", "dataDir": "` + dir + `", "ranges": [[{"subnet": "10.99.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
		{"type": "portmap", "capabilities": {"portMappings": true}}]}`
}

func leasesIn(dir string) []string {
	found, _ := filepath.Glob(filepath.Join(dir, "real", "10.*"))
	return found
}

func TestRealPlugins(t *testing.T) {
	s := newSite(t)
	leases := t.TempDir()
	s.conf("10-real.conflist", bridgeList(leases))
	n := s.start()
	if err := n.Status(t.Context()); err != nil {
		t.Fatalf("Status: %v", err)
	}
	a := newPod(t)
	a.Ports = []pod.PortMapping{{Protocol: pod.TCP, ContainerPort: 80, HostPort: 8080}, {Protocol: pod.TCP, ContainerPort: 443}}
	network := attach(t, n, a)
	if len(network.IPs) != 1 || !netip.MustParsePrefix("10.99.0.0/24").Contains(netip.MustParseAddr(network.IPs[0])) {
		t.Errorf("addresses %v", network.IPs)
	}
	inside := run(t, "ip", "-n", filepath.Base(a.NetNS), "addr", "show", "eth0")
	if !strings.Contains(inside, network.IPs[0]) || !strings.Contains(inside, network.MAC) {
		t.Errorf("eth0 is not %s with %s:\n%s", network.IPs[0], network.MAC, inside)
	}
	if rules := run(t, "iptables-save"); !strings.Contains(rules, "--to-destination "+network.IPs[0]+":80") {
		t.Errorf("no host port in\n%s", rules)
	}
	a.Network = network
	detach(t, n, a)
	detach(t, n, a)
	if left := leasesIn(leases); len(left) > 0 {
		t.Errorf("leases left: %v", left)
	}
	if rules := run(t, "iptables-save"); strings.Contains(rules, string(a.Key)) {
		t.Errorf("rules left:\n%s", rules)
	}
	cached(t, n)
}

func TestDetachWithoutNamespace(t *testing.T) {
	s := newSite(t)
	leases := t.TempDir()
	s.conf("10-real.conflist", bridgeList(leases))
	n := s.start()
	a := newPod(t)
	attach(t, n, a)
	run(t, "ip", "netns", "del", filepath.Base(a.NetNS))
	detach(t, n, a)
	if left := leasesIn(leases); len(left) > 0 {
		t.Errorf("leases left: %v", left)
	}
}

func TestDetachOfWhatWasNeverAttached(t *testing.T) {
	s := newSite(t)
	n := s.start()
	detach(t, n, &cni.Attachment{Key: pod.NewKey(), NetNS: "/var/run/netns/none"})
	verbs := s.plugin("broken", "exit 1")
	s.conf("10.conflist", list("1.0.0", "broken"))
	detach(t, s.start(), &cni.Attachment{Key: pod.NewKey(), NetNS: "/var/run/netns/none"})
	if got := read(t, verbs); got != "" {
		t.Errorf("plugins were asked to %s a pod that they never saw", got)
	}
}

func TestDetachUsesTheConfigurationOfAttach(t *testing.T) {
	s := newSite(t)
	old, other := s.plugin("old", ready), s.plugin("other", ready)
	s.conf("10.conflist", list("1.0.0", "old"))
	n := s.start()
	s.waitLog("network=test")
	a := newPod(t)
	attach(t, n, a)
	s.conf("10.conflist", list("1.0.0", "other"))
	s.waitLog("network=test")
	detach(t, n, a)
	if got := read(t, old); got != "ADD\nDEL\n" {
		t.Errorf("the plugin that attached the pod saw %q", got)
	}
	attach(t, n, newPod(t))
	if got := read(t, other); got != "ADD\n" {
		t.Errorf("the plugin of the new configuration saw %q", got)
	}
}

func TestDetachWithTheJournalsResultOnly(t *testing.T) {
	s := newSite(t)
	input := filepath.Join(s.bin, "input")
	s.plugin("plain", "cat > "+input+"\n"+ready)
	s.conf("10.conflist", list("1.0.0", "plain"))
	a := newPod(t)
	a.Network = attach(t, s.start(), a)
	if err := os.RemoveAll(s.opts.CacheDir); err != nil {
		t.Fatal(err)
	}
	n := s.start()
	detach(t, n, a)
	if got := read(t, input); !strings.Contains(got, `"prevResult"`) || !strings.Contains(got, "10.1.2.3/24") {
		t.Errorf("DEL did not get the result of ADD: %s", got)
	}
	cached(t, n)
}

func TestFailingPlugin(t *testing.T) {
	s := newSite(t)
	first := s.plugin("first", ready)
	s.plugin("second", `[ $CNI_COMMAND = ADD ] && { echo '{"code": 7, "msg": "no more addresses", "details": "ask the admin"}'; exit 1; }; exit 0`)
	s.conf("10.conflist", list("1.0.0", "first", "second"))
	n := s.start()
	_, err := n.Attach(t.Context(), newPod(t))
	if err == nil || !strings.Contains(err.Error(), `type="second"`) || !strings.Contains(err.Error(), "no more addresses; ask the admin") {
		t.Errorf("Attach: %v; want the plugin's name and message", err)
	}
	if got := read(t, first); got != "ADD\nDEL\n" {
		t.Errorf("the plugin before saw %q", got)
	}
	cached(t, n)
}

func TestPluginWithoutMessage(t *testing.T) {
	s := newSite(t)
	s.plugin("rude", "echo something broke >&2; exit 3")
	s.conf("10.conflist", list("1.0.0", "rude"))
	n := s.start()
	a := newPod(t)
	_, err := n.Attach(t.Context(), a)
	if err == nil || !strings.Contains(err.Error(), "exit status 3: something broke") {
		t.Errorf("Attach: %v", err)
	}
	if !strings.Contains(fmt.Sprint(err), "undo: ") {
		t.Errorf("Attach: %v; want that DEL failed too", err)
	}
	cached(t, n, a.Key)
	s.plugin("rude", "exit 0")
	detach(t, n, a)
	cached(t, n)
}

func TestHangingPlugin(t *testing.T) {
	s := newSite(t)
	s.plugin("stuck", `[ $CNI_COMMAND = ADD ] || exit 0; sleep 1000`)
	s.conf("10.conflist", list("1.0.0", "stuck"))
	s.opts.AttachTimeout = time.Second
	n := s.start()
	_, err := n.Attach(t.Context(), newPod(t))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "stuck ADD was killed after ") ||
		!strings.Contains(err.Error(), "no answer within 1s") {
		t.Errorf("Attach: %v; want plugin, verb and time", err)
	}
	cached(t, n)
}

// eventually is for what other processes do: it looks until it is so.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick, timeout := time.NewTicker(5*time.Millisecond), time.After(patience)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("not so within %v: %s", patience, what)
		}
	}
}

func TestPluginThatLeavesAProcessBehind(t *testing.T) {
	s := newSite(t)
	s.plugin("daemonising", `[ $CNI_COMMAND = ADD ] && setsid sleep 1000 &
`+ready)
	s.conf("10.conflist", list("1.0.0", "daemonising"))
	began := time.Now()
	attach(t, s.start(), newPod(t))
	if took := time.Since(began); took > 500*time.Second {
		t.Errorf("Attach took %v: it waited for the process left behind", took)
	}
}

func TestCallerGivesUp(t *testing.T) {
	s := newSite(t)
	pidFile := filepath.Join(s.bin, "pid")
	verbs := s.plugin("slow", `[ $CNI_COMMAND = ADD ] || exit 0; sleep 1000 & echo $! > `+pidFile+`; wait`)
	s.conf("10.conflist", list("1.0.0", "slow"))
	n := s.start()
	ctx, cancel := context.WithCancel(t.Context())
	a := newPod(t)
	done := make(chan error)
	go func() {
		_, err := n.Attach(ctx, a)
		done <- err
	}()
	eventually(t, "the plugin runs", func() bool { return strings.HasSuffix(read(t, pidFile), "\n") })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Attach: %v", err)
	}
	if got := read(t, verbs); got != "ADD\nDEL\n" {
		t.Errorf("the plugin saw %q", got)
	}
	child, err := strconv.Atoi(strings.TrimSpace(read(t, pidFile)))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the plugin's child is killed too", func() bool { return errors.Is(unix.Kill(child, 0), unix.ESRCH) })
	cached(t, n)
}

func TestNoAddressIsAnError(t *testing.T) {
	s := newSite(t)
	verbs := s.plugin("none", `[ $CNI_COMMAND = ADD ] && echo '{"cniVersion": "1.0.0"}'; exit 0`)
	s.conf("10.conflist", list("1.0.0", "none"))
	if _, err := s.start().Attach(t.Context(), newPod(t)); err == nil || !strings.Contains(err.Error(), "no address") {
		t.Errorf("Attach: %v", err)
	}
	if got := read(t, verbs); got != "ADD\nDEL\n" {
		t.Errorf("the plugin saw %q", got)
	}
}

func TestAddressesOfTheSandboxInterfaceComeFirst(t *testing.T) {
	s := newSite(t)
	s.plugin("many", `[ $CNI_COMMAND = ADD ] && cat << 'EOF'
{"cniVersion": "1.0.0",
 "interfaces": [{"name": "br0"}, {"name": "net1", "sandbox": "/ns", "mac": "02:00:00:00:00:01"}, {"name": "eth0", "sandbox": "/ns", "mac": "02:00:00:00:00:02"}],
 "ips": [{"address": "10.0.0.1/24", "interface": 0}, {"address": "10.0.1.1/24", "interface": 1},
         {"address": "10.0.2.1/24", "interface": 2}, {"address": "fd00::2/64", "interface": 2}]}
EOF
exit 0`)
	s.conf("10.conflist", list("1.0.0", "many"))
	network := attach(t, s.start(), newPod(t))
	if want := []string{"10.0.2.1", "fd00::2", "10.0.1.1"}; !slices.Equal(network.IPs, want) {
		t.Errorf("addresses %v, want %v", network.IPs, want)
	}
	if network.MAC != "02:00:00:00:00:02" {
		t.Errorf("MAC %s is not eth0's", network.MAC)
	}
}

func TestWhatPluginsAreTold(t *testing.T) {
	s := newSite(t)
	s.plugin("curious", "[ $CNI_COMMAND = ADD ] && echo $CNI_CONTAINERID $CNI_IFNAME \"$CNI_ARGS\" > "+s.bin+"/args; cat > "+s.bin+"/input\n"+ready)
	s.conf("10.conflist", `{"cniVersion": "1.0.0", "name": "test", "plugins": [{"type": "curious", "capabilities":
		{"portMappings": true, "dns": true, "bandwidth": true, "cgroupPath": true, "io.kubernetes.cri.pod-annotations": true, "ips": true}}]}`)
	a := newPod(t)
	a.Ports = []pod.PortMapping{{Protocol: pod.UDP, ContainerPort: 53, HostPort: 5353, HostIP: "127.0.0.1"}, {Protocol: pod.TCP, ContainerPort: 80}}
	a.DNS = &pod.DNS{Servers: []string{"10.0.0.10"}, Searches: []string{"shop.svc"}}
	a.CgroupParent = "/kubepods/pod1"
	a.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "1M"}
	attach(t, s.start(), a)
	key := string(a.Key)
	if got, want := strings.TrimSpace(read(t, s.bin+"/args")), key+" eth0 IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID="+
		key+";K8S_POD_UID=uid-1"; got != want {
		t.Errorf("arguments\n%s, want\n%s", got, want)
	}
	var input struct {
		RuntimeConfig any `json:"runtimeConfig"`
	}
	if err := json.Unmarshal([]byte(read(t, s.bin+"/input")), &input); err != nil {
		t.Fatal(err)
	}
	want := `{"bandwidth":{"ingressBurst":4294967295,"ingressRate":1000000},"cgroupPath":"/kubepods/pod1",` +
		`"dns":{"searches":["shop.svc"],"servers":["10.0.0.10"]},"io.kubernetes.cri.pod-annotations":{"kubernetes.io/ingress-bandwidth":"1M"},` +
		`"portMappings":[{"containerPort":53,"hostIP":"127.0.0.1","hostPort":5353,"protocol":"udp"}]}`
	got, _ := json.Marshal(input.RuntimeConfig)
	if strings.ReplaceAll(string(got), "4.294967295e+09", "4294967295") != want {
		t.Errorf("runtimeConfig\n%s, want\n%s", got, want)
	}
}

func TestBandwidthThatIsNone(t *testing.T) {
	s := newSite(t)
	s.plugin("plain", ready)
	s.conf("10.conflist", list("1.0.0", "plain"))
	n := s.start()
	for _, value := range []string{"fast", "1", "2E"} {
		a := newPod(t)
		a.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": value}
		if _, err := n.Attach(t.Context(), a); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), value) {
			t.Errorf("egress bandwidth %s: %v", value, err)
		}
	}
	cached(t, n)
}

// TestPodsDoNotWaitForEachOther has a plugin that answers only when all pods are being attached.
func TestPodsDoNotWaitForEachOther(t *testing.T) {
	const pods = 4
	s := newSite(t)
	meet := filepath.Join(s.bin, "meet")
	s.plugin("meeting", fmt.Sprintf(`[ $CNI_COMMAND = ADD ] && { echo here >> %s; until [ $(wc -l < %s) -ge %d ]; do sleep 0.01; done; }
%s`, meet, meet, pods, ready))
	s.conf("10.conflist", list("1.0.0", "meeting"))
	s.opts.AttachTimeout = 2 * patience
	n := s.start()
	var wg sync.WaitGroup
	for range pods {
		a := newPod(t)
		wg.Go(func() {
			if _, err := n.Attach(t.Context(), a); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestAttachAgainConnectsAnew(t *testing.T) {
	s := newSite(t)
	s.conf("10-real.conflist", bridgeList(t.TempDir()))
	a := newPod(t)
	attach(t, s.start(), a)
	attach(t, s.start(), a) // a server that was killed before it recorded the first
	detach(t, s.start(), a)
}
