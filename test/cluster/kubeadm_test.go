package cluster_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gantry/test/cluster/kube"
)

// unmet are the demands of kubeadm that this machine, not gantry, does not meet.
const unmet = "SystemVerification,NumCPU,Mem,Hostname,FileExisting-conntrack,FileExisting-crictl,FileExisting-socat,FileExisting-ethtool,FileExisting-tc"

// kubeadm runs it on a node; it must succeed.
func kubeadm(t *testing.T, n *kube.Node, args ...string) string {
	t.Helper()
	out, err := n.Kubeadm(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// initialise makes a control plane on a node whose runtime is at the socket. kube-proxy and CoreDNS are left out: nobody
// has images of them here.
func initialise(t *testing.T, n *kube.Node, socket string) {
	t.Helper()
	kubeadm(t, n, "init", "--config", n.KubeadmConfig(socket), "--ignore-preflight-errors", unmet, "--skip-phases", "addon/coredns,addon/kube-proxy")
	n.UseKubeconfig()
	n.WaitReady()
}

// TestKubeadm takes the steps of docs/install.md: kubeadm init and kubeadm join on machines whose runtime is gantry, and
// kubeadm reset.
func TestKubeadm(t *testing.T) {
	c := kube.Kubeadm(t, 2)
	first, second := c.Nodes[0], c.Nodes[1]
	initialise(t, first, kube.CRISocket)
	join := strings.Fields(kubeadm(t, first, "token", "create", "--print-join-command"))
	kubeadm(t, second, append(join[1:], "--cri-socket", kube.CRISocket, "--node-name", second.Name, "--ignore-preflight-errors", unmet)...)
	second.WaitReady()
	out := c.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].status.nodeInfo.containerRuntimeVersion}")
	if strings.Count(out, "gantry://") != 2 {
		t.Errorf("runtimes %q", out)
	}
	t.Run("a pod on each node", func(t *testing.T) {
		s := newSuite(t, c)
		for _, n := range c.Nodes {
			s.apply(strings.NewReplacer("name: pod}", "name: on-"+n.Name+"}", "spec:\n", "spec:\n  nodeName: "+n.Name+"\n  tolerations: [{operator: Exists}]\n").Replace(sleeper))
			s.ready("on-" + n.Name)
			if out := s.exec("on-"+n.Name, "echo here"); out != "here\n" {
				s.t.Errorf("exec on %s: %q", n.Name, out)
			}
		}
	})
	for _, n := range []*kube.Node{second, first} {
		n.Kubelet.Stop(syscall.SIGKILL) // kubeadm does that where systemd is
		kubeadm(t, n, "reset", "--force", "--cri-socket", kube.CRISocket)
		if out, err := n.Crictl("pods", "-q"); err != nil || strings.TrimSpace(out) != "" {
			t.Errorf("after kubeadm reset %s has pods: %q, %v", n.Name, out, err)
		}
	}
}

// TestSwitch takes the steps of docs/migration.md on a node of kubeadm's that has containerd, and the way back.
func TestSwitch(t *testing.T) {
	c := kube.Kubeadm(t, 1)
	n := c.Nodes[0]
	old := n.OldRuntime()
	initialise(t, n, kube.OldSocket)
	s := newSuite(t, c)
	s.apply(strings.Replace(webDeployment, "    spec:\n", "    spec:\n      tolerations: [{key: node-role.kubernetes.io/control-plane}]\n", 1))
	s.kubectl("rollout", "status", "deployment/web", "--timeout=170s")
	s.runsOn(n, "containerd")

	s.leave(n)
	s.must(n.CrictlOf(kube.OldSocket, "rmp", "--all", "--force"))
	s.must(n.Run("bash", "-c", documented(t, "sed -i 's,^containerRuntimeEndpoint:", "/var/lib/kubelet/config.yaml")))
	old.Stop(syscall.SIGTERM)
	n.Kubelet.Start()
	s.returned(n, "gantry")

	s.leave(n)
	s.must(n.Run(filepath.Join(os.Getenv("GANTRY_BIN"), "gantry"), "rm", "--all", "--force"))
	n.Gantry.Stop(syscall.SIGTERM)
	old.Start()
	s.must(n.Run("sed", "-i", "s,^containerRuntimeEndpoint:.*,containerRuntimeEndpoint: "+kube.OldSocket+",",
		"/var/lib/kubelet/instance-config.yaml", "/var/lib/kubelet/config.yaml"))
	n.Kubelet.Start()
	s.returned(n, "containerd")
}

// leave empties a node, but for its static pods, and stops its kubelet.
func (s *suite) leave(n *kube.Node) {
	s.t.Helper()
	s.Kubectl(s.t, "cordon", n.Name)
	s.Kubectl(s.t, "drain", n.Name, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=170s")
	n.Kubelet.Stop(syscall.SIGTERM)
}

// returned waits until a node is back with a runtime, lets pods in and finds them there.
func (s *suite) returned(n *kube.Node, runtime string) {
	s.t.Helper()
	s.runsOn(n, runtime)
	n.WaitReady()
	s.Kubectl(s.t, "uncordon", n.Name)
	s.kubectl("rollout", "status", "deployment/web", "--timeout=170s")
	for _, p := range s.pods("app=web") {
		if p.DeletionTimestamp == nil && !strings.HasPrefix(p.Status.ContainerStatuses[0].ContainerID, runtime+"://") {
			s.t.Errorf("%s is %s", p.Name, p.Status.ContainerStatuses[0].ContainerID)
		}
	}
}

// runsOn waits until the cluster says that a node has a runtime.
func (s *suite) runsOn(n *kube.Node, runtime string) {
	s.t.Helper()
	s.eventually("the node's runtime is "+runtime, func(ctx context.Context) error {
		out, err := s.TryKubectl(ctx, "", "get", "node", n.Name, "-o", "jsonpath={.status.nodeInfo.containerRuntimeVersion}")
		if err == nil && !strings.HasPrefix(out, runtime+"://") {
			err = fmt.Errorf("it is %s", out)
		}
		return err
	})
}

func (s *suite) must(out string, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
}

// documented is the command of docs/migration.md that begins and ends with these words.
func documented(t *testing.T, begin, end string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/migration.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), begin)
	command, _, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatalf("docs/migration.md has no command %s … %s", begin, end)
	}
	return begin + command + end
}
