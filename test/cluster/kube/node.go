package kube

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

//go:embed kubelet.yaml
var kubeletConfig string

// Node is a machine of the cluster: network and mount namespaces, a container runtime, a kubelet and a kube-proxy.
type Node struct {
	Name string
	IP   string
	Root string // gantry's and the kubelet's files

	Gantry, Kubelet, Proxy *Process // Gantry is the peer where Options.Peer names one

	c      *Cluster
	below  []below // in the order of their start
	index  int
	boots  int
	holder *exec.Cmd // keeps the namespaces
	cgroup string
}

// startNode makes a machine and starts what runs on a node. It does not wait.
func (c *Cluster) startNode(index int) *Node {
	c.t.Helper()
	n := c.bareNode(index)
	c.check("certificate", c.pki.issue(n.Name, "system:node:"+n.Name, []string{"system:nodes"}, []string{n.IP, n.Name}))
	n.Kubelet = run(c.t, c.Logs, "kubelet-"+n.Name, func() *exec.Cmd { return n.Command(n.kubeletArgs()...) })
	n.Proxy = run(c.t, c.Logs, "kube-proxy-"+n.Name, func() *exec.Cmd {
		return n.Command(Program(c.t, "kube-proxy"), "--config", n.proxyConfig())
	})
	return n
}

// bareNode makes a machine that has a container runtime and nothing of Kubernetes.
func (c *Cluster) bareNode(index int) *Node {
	c.t.Helper()
	name := "node" + strconv.Itoa(index)
	n := &Node{
		Name: name, IP: nodePrefix + strconv.Itoa(10+index), Root: c.dir(name),
		c: c, index: index, cgroup: filepath.Join(c.cgroup, name),
	}
	n.startMachine()
	c.plug(n)
	c.makeCgroup(n.cgroup)
	n.startRuntime()
	return n
}

func (n *Node) kubeletArgs() []string {
	config := strings.NewReplacer("$CA", n.c.pki.path("ca.crt"), "$CERT", n.c.pki.path(n.Name+".crt"), "$KEY", n.c.pki.path(n.Name+".key"),
		"$IP", n.IP, "$CGROUP", n.cgroup, "$SOCKET", socket, "$MANIFESTS", n.manifests()).Replace(kubeletConfig)
	all := map[string]any{}
	for _, text := range []string{config, n.c.options.Kubelet} {
		n.c.check("kubelet's configuration", yaml.Unmarshal([]byte(text), &all))
	}
	if len(n.c.options.Gates) > 0 {
		all["featureGates"] = n.c.options.Gates
	}
	merged, err := yaml.Marshal(all)
	n.c.check("kubelet's configuration", err)
	return []string{
		Program(n.c.t, "kubelet"), "--config", n.c.write(n.Name+"/kubelet.yaml", string(merged)), "--kubeconfig", n.c.kubeconfig(n.Name),
		"--hostname-override", n.Name, "--node-ip", n.IP, "--v", "2",
	}
}

// manifests is where the kubelet looks for static pods.
func (n *Node) manifests() string { return n.c.dir(n.Name + "/manifests") }

func (n *Node) proxyConfig() string {
	return n.c.write(n.Name+"/proxy.yaml", fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %s}
hostnameOverride: %s
mode: iptables
clusterCIDR: %s
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, n.c.kubeconfig("proxy"), n.Name, podCIDR))
}

// Crictl runs crictl against the node's runtime.
func (n *Node) Crictl(args ...string) (string, error) { return n.CrictlOf("unix://"+socket, args...) }

// CrictlOf runs crictl against the runtime at endpoint.
func (n *Node) CrictlOf(endpoint string, args ...string) (string, error) {
	config := n.c.write("crictl.yaml", "")
	return n.Run(append([]string{
		filepath.Join(os.Getenv("GANTRY_TOOLS"), "crictl"), "--config", config,
		"--timeout", "2m", "--runtime-endpoint", endpoint, "--image-endpoint", endpoint,
	}, args...)...)
}

// WaitReady waits until the node is Ready.
func (n *Node) WaitReady() {
	n.c.t.Helper()
	ctx, cancel := context.WithTimeout(n.c.t.Context(), readyTime)
	defer cancel()
	last := "it is not registered"
	for tick := time.NewTicker(250 * time.Millisecond); ; {
		object, err := n.c.Client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err == nil {
			for _, cond := range object.Status.Conditions {
				if cond.Type == corev1.NodeReady {
					if cond.Status == corev1.ConditionTrue {
						return
					}
					last = cond.Message
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			n.c.t.Fatalf("%s is not Ready: %s\n%s\n%s", n.Name, last, n.Kubelet.tail(), n.Gantry.tail())
		}
	}
}
