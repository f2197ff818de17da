package kube

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry/test/node"
)

//go:embed kubelet.yaml
var kubeletConfig string

// Node is a machine of the cluster: network and mount namespaces, a gantry, a kubelet and a kube-proxy.
type Node struct {
	Name string
	IP   string
	Root string // gantry's and the kubelet's files

	Gantry, Kubelet, Proxy *Process

	c      *Cluster
	index  int
	holder *exec.Cmd // keeps the namespaces
	cgroup string
}

// machine prepares the namespaces of a node: a /run of its own, the directories that programs have
// at fixed places bound into the node's root, and mounts that may propagate.
const machine = `set -e
mount --make-rshared /
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
mkdir -p /run/netns /run/lock "$1"/kubelet "$1"/pods "$1"/containers /var/lib/kubelet /var/log/pods /var/log/containers
mount --bind "$1"/kubelet /var/lib/kubelet
mount --make-rshared /var/lib/kubelet
mount --bind "$1"/pods /var/log/pods
mount --bind "$1"/containers /var/log/containers
ip link set lo up
echo ready
exec sleep infinity`

// startNode makes a machine and starts what runs on a node. It does not wait.
func (c *Cluster) startNode(index int) *Node {
	c.t.Helper()
	name := "node" + strconv.Itoa(index)
	n := &Node{
		Name: name, IP: nodePrefix + strconv.Itoa(10+index), Root: c.dir(name),
		c: c, index: index, cgroup: filepath.Join(c.cgroup, name),
	}
	n.startMachine()
	c.plug(n)
	c.check("certificate", c.pki.issue(name, "system:node:"+name, []string{"system:nodes"}, []string{n.IP, name}))
	c.makeCgroup(n.cgroup)
	n.Gantry = run(c.t, c.Logs, "gantry-"+name, func() *exec.Cmd { return n.Command(n.gantryArgs()...) })
	c.t.Cleanup(n.killKeeper)
	n.waitSocket()
	n.Kubelet = run(c.t, c.Logs, "kubelet-"+name, func() *exec.Cmd { return n.Command(n.kubeletArgs()...) })
	n.Proxy = run(c.t, c.Logs, "kube-proxy-"+name, func() *exec.Cmd {
		return n.Command(Program(c.t, "kube-proxy"), "--config", n.proxyConfig())
	})
	return n
}

func (n *Node) startMachine() {
	t := n.c.t
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "--net", "--propagation", "private", "bash", "-c", machine, "machine", n.Root)
	out, err := cmd.StdoutPipe()
	n.c.check("machine", err)
	cmd.Stderr = os.Stderr
	n.c.check("machine", cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	answer := make([]byte, len("ready"))
	if _, err := out.Read(answer); err != nil || string(answer) != "ready" {
		t.Fatalf("the machine of %s was not made: %q, %v", n.Name, answer, err)
	}
	n.holder = cmd
}

// Command is a command in the node's namespaces, not started.
func (n *Node) Command(args ...string) *exec.Cmd {
	target := strconv.Itoa(n.holder.Process.Pid)
	return exec.Command("nsenter", append([]string{"--target", target, "--mount", "--net", "--"}, args...)...)
}

// Run runs a command in the node's namespaces and returns what it prints.
func (n *Node) Run(args ...string) (string, error) {
	out, err := n.Command(args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// socket is where gantry listens, in the node's namespaces.
const socket = "/run/gantry/gantry.sock"

func (n *Node) gantryArgs() []string {
	certs := "certs.d/" + registry + "/hosts.toml"
	n.c.write(n.Name+"/"+certs, "server = \"http://"+registry+"\"\n")
	args := []string{
		filepath.Join(os.Getenv("GANTRY_BIN"), "gantry"), "serve", "--root", filepath.Join(n.Root, "gantry"),
		"--certs-dir", filepath.Join(n.Root, "certs.d"), "--network", n.c.options.Network,
		"--cni-conf-dir", n.cniConf(), "--cni-bin-dir", "/usr/lib/cni", "--log-level", "debug", "--metrics-listen", "127.0.0.1:9477",
	}
	if n.c.options.Network == "builtin" {
		args = append(args, "--subnet", n.subnet())
	}
	if n.c.options.Runtime != "" {
		args = append(args, "--default-runtime", n.c.options.Runtime)
	}
	return append(args, n.c.options.Flags...)
}

// subnet is of the node's pods.
func (n *Node) subnet() string { return fmt.Sprintf("10.244.%d.0/24", n.index) }

// cniConf writes a network whose pods reach those of other nodes by routes, unmasked.
func (n *Node) cniConf() string {
	n.c.write(n.Name+"/net.d/10-cluster.conflist", fmt.Sprintf(`{
  "cniVersion": "1.0.0", "name": "cluster", "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}]}
`, filepath.Join(n.Root, "leases"), n.subnet()))
	return filepath.Join(n.Root, "net.d")
}

func (n *Node) kubeletArgs() []string {
	gates := "{}"
	if len(n.c.options.Gates) > 0 {
		var pairs []string
		for gate := range strings.SplitSeq(n.c.gates(), ",") {
			pairs = append(pairs, strings.Replace(gate, "=", ": ", 1))
		}
		gates = "{" + strings.Join(pairs, ", ") + "}"
	}
	config := strings.NewReplacer("$CA", n.c.pki.path("ca.crt"), "$CERT", n.c.pki.path(n.Name+".crt"), "$KEY", n.c.pki.path(n.Name+".key"),
		"$IP", n.IP, "$CGROUP", n.cgroup, "$SOCKET", socket, "$GATES", gates, "$MANIFESTS", n.manifests()).Replace(kubeletConfig)
	return []string{
		Program(n.c.t, "kubelet"), "--config", n.c.write(n.Name+"/kubelet.yaml", config), "--kubeconfig", n.c.kubeconfig(n.Name),
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

// waitSocket waits until gantry answers.
func (n *Node) waitSocket() {
	n.c.t.Helper()
	deadline := time.After(readyTime)
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		_, err := n.Crictl("version")
		if err == nil {
			return
		}
		if !n.Gantry.Running() {
			n.c.t.Fatalf("gantry on %s ended: %v\n%s", n.Name, err, n.Gantry.tail())
		}
		select {
		case <-tick.C:
		case <-deadline:
			n.c.t.Fatalf("gantry on %s does not answer: %v\n%s", n.Name, err, n.Gantry.tail())
		}
	}
}

// Crictl runs crictl against the node's runtime.
func (n *Node) Crictl(args ...string) (string, error) {
	config := n.c.write("crictl.yaml", "")
	return n.Run(append([]string{
		filepath.Join(os.Getenv("GANTRY_TOOLS"), "crictl"), "--config", config,
		"--runtime-endpoint", "unix://" + socket, "--image-endpoint", "unix://" + socket,
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

// KillWorker sends SIGKILL to the worker of the node's keeper and says whether there was one.
func (n *Node) KillWorker() bool {
	for _, p := range n.keeper() {
		if slices.ContainsFunc(n.keeper(), func(other node.Process) bool { return other.Pid == p.Parent }) {
			return syscall.Kill(p.Pid, syscall.SIGKILL) == nil
		}
	}
	return false
}

// keeper returns the processes of the node's keeper, which is in the node's mount namespace.
func (n *Node) keeper() []node.Process {
	ours, err := os.Readlink(namespace(n.holder.Process.Pid))
	if err != nil {
		return nil
	}
	return node.Processes(func(p node.Process) bool {
		theirs, err := os.Readlink(namespace(p.Pid))
		return err == nil && theirs == ours && filepath.Base(p.Command[0]) == "gantry-keeper"
	})
}

func namespace(pid int) string { return fmt.Sprintf("/proc/%d/ns/mnt", pid) }

// killKeeper ends the keeper as an operator would who takes the node down.
func (n *Node) killKeeper() {
	for processes := n.keeper(); len(processes) > 0; processes = n.keeper() {
		for _, p := range processes {
			_ = syscall.Kill(p.Pid, syscall.SIGKILL)
			node.WaitGone(p.Pid)
		}
	}
}
