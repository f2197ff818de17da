package cluster_test

import (
	"strings"
	"testing"

	"gantry/test/cluster/kube"
)

// unmet are the demands of kubeadm that this machine, not gantry, does not meet.
const unmet = "SystemVerification,NumCPU,Mem,Hostname,FileExisting-conntrack,FileExisting-crictl,FileExisting-socat,FileExisting-ethtool,FileExisting-tc"

// TestKubeadm takes the steps of docs/install.md: kubeadm init and kubeadm join on machines whose runtime is gantry, and
// kubeadm reset. kube-proxy and CoreDNS are left out: nobody has images of them here.
func TestKubeadm(t *testing.T) {
	c := kube.Kubeadm(t, 2)
	first, second := c.Nodes[0], c.Nodes[1]
	kubeadm := func(n *kube.Node, args ...string) string {
		t.Helper()
		out, err := n.Kubeadm(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	kubeadm(first, "init", "--config", first.KubeadmConfig(), "--ignore-preflight-errors", unmet, "--skip-phases", "addon/coredns,addon/kube-proxy")
	first.UseKubeconfig()
	first.WaitReady()
	// What is documented for a switch of the runtime stands in these files.
	for _, file := range []string{"instance-config.yaml", "config.yaml"} {
		text, err := first.Run("cat", "/var/lib/kubelet/"+file)
		if err != nil || !strings.Contains("\n"+text, "\ncontainerRuntimeEndpoint: ") || !strings.Contains(text, kube.CRISocket) {
			t.Errorf("%s: %v\n%s", file, err, text)
		}
	}
	join := strings.Fields(kubeadm(first, "token", "create", "--print-join-command"))
	kubeadm(second, append(join[1:], "--cri-socket", kube.CRISocket, "--node-name", second.Name, "--ignore-preflight-errors", unmet)...)
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
		n.Kubelet.Stop(9) // kubeadm does that where systemd is
		kubeadm(n, "reset", "--force", "--cri-socket", kube.CRISocket)
		if out, err := n.Crictl("pods", "-q"); err != nil || strings.TrimSpace(out) != "" {
			t.Errorf("after kubeadm reset %s has pods: %q, %v", n.Name, out, err)
		}
	}
}
