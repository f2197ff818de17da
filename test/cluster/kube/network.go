package kube

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// startNetwork makes the link between the machines; the control plane is at its first address.
func (c *Cluster) startNetwork() {
	c.t.Helper()
	c.ip("link", "add", bridge, "type", "bridge")
	c.ip("address", "add", controlIP+"/24", "dev", bridge)
	c.ip("link", "set", bridge, "up")
	c.t.Cleanup(func() { _ = exec.Command("ip", "link", "delete", bridge).Run() })
	for name, value := range map[string]string{
		"net/ipv4/ip_forward":                 "1",
		"net/bridge/bridge-nf-call-iptables":  "0", // the link is a wire, not a router
		"net/ipv4/conf/all/rp_filter":         "0",
		"net/bridge/bridge-nf-call-ip6tables": "0",
	} {
		c.check("sysctl", os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644))
	}
}

// plug joins a node to the link.
func (c *Cluster) plug(n *Node) {
	c.t.Helper()
	port := n.port()
	c.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(n.holder.Process.Pid))
	c.ip("link", "set", port, "master", bridge, "up")
	for _, args := range []string{
		"address add " + n.IP + "/24 dev eth0", "link set eth0 up", "route add default via " + controlIP,
	} {
		_, err := n.Run(append([]string{"ip"}, strings.Fields(args)...)...)
		c.check("node's network", err)
	}
	_, err := n.Run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=1", "net.ipv6.conf.all.forwarding=1")
	c.check("node's network", err)
}

// port is the node's end of the link, on the control plane's machine.
func (n *Node) port() string { return "port" + strconv.Itoa(n.index) }

// connectNodes gives every machine a route to every node's pods, as a cloud's route controller does.
func (c *Cluster) connectNodes() {
	c.t.Helper()
	for _, to := range c.Nodes {
		c.ip("route", "replace", to.subnet(), "via", to.IP)
		for _, from := range c.Nodes {
			if from != to {
				_, err := from.Run("ip", "route", "replace", to.subnet(), "via", to.IP)
				c.check("route", err)
			}
		}
	}
}

func (c *Cluster) ip(args ...string) {
	c.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		c.t.Fatal(fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out))
	}
}

// makeCgroup makes a node's root cgroup in every hierarchy: the kubelet expects it.
func (c *Cluster) makeCgroup(path string) {
	c.t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	c.check("cgroup mounts", err)
	for _, m := range mounts {
		dir := filepath.Join(m.Mountpoint, path)
		c.check("cgroup", os.MkdirAll(dir, 0o755))
		// A child of cpuset cannot have a process before it has CPUs and memory nodes of its own.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			c.inherit(m.Mountpoint, path, file)
		}
	}
}

func (c *Cluster) inherit(root, path, file string) {
	c.t.Helper()
	value, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		return // no cpuset of cgroup v1
	}
	dir := root
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		dir = filepath.Join(dir, name)
		c.check("cpuset", os.WriteFile(filepath.Join(dir, file), value, 0o644))
	}
}
