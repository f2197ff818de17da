package kube

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"gantry/test/node"
)

// socket is where the runtime listens, in the node's namespaces.
const socket = "/run/gantry/gantry.sock"

// startRuntime starts what runs the node's pods and waits until it answers.
func (n *Node) startRuntime() {
	n.c.t.Helper()
	n.c.t.Cleanup(n.killLeft)
	if n.c.options.Peer == "containerd" {
		config := n.peerConfig(socket)
		n.Gantry = n.daemon("containerd", "containerd", "--config", config, "--log-level", "warn")
		n.waitSocket()
		return
	}
	if n.c.options.Engine == "docker" {
		n.startDocker()
	}
	n.Gantry = run(n.c.t, n.c.Logs, "gantry-"+n.Name, func() *exec.Cmd { return n.Command(n.gantryArgs()...) })
	n.waitSocket()
}

func (n *Node) gantryArgs() []string {
	n.trustRegistries()
	args := []string{
		filepath.Join(os.Getenv("GANTRY_BIN"), "gantry"), "serve", "--root", filepath.Join(n.Root, "gantry"),
		"--certs-dir", n.certs(), "--network", n.c.options.Network,
		"--cni-conf-dir", n.cniConf(), "--cni-bin-dir", plugins, "--log-level", "debug", "--metrics-listen", "127.0.0.1:9477",
	}
	if n.c.options.Network == "builtin" {
		args = append(args, "--subnet", n.subnet())
	}
	if n.c.options.Runtime != "" {
		args = append(args, "--default-runtime", n.c.options.Runtime)
	}
	if n.c.options.Engine != "" {
		args = append(args, "--engine", n.c.options.Engine)
	}
	return append(args, n.c.options.Flags...)
}

// certs is the directory of what the node knows about registries.
func (n *Node) certs() string { return filepath.Join(n.Root, "certs.d") }

// trustRegistries lets the runtime speak plain HTTP to the cluster's registries, one of which is a mirror.
func (n *Node) trustRegistries() {
	n.c.t.Helper()
	for host, text := range map[string]string{
		registry:       "server = \"http://" + registry + "\"\n",
		lockedRegistry: "server = \"http://" + lockedRegistry + "\"\n",
		mirrored:       "server = \"https://" + mirrored + "\"\n[host.\"http://" + registry + "\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
	} {
		n.c.write(n.Name+"/certs.d/"+host+"/hosts.toml", text)
	}
}

// subnet is of the node's pods.
func (n *Node) subnet() string { return fmt.Sprintf("10.244.%d.0/24", n.index) }

// plugins is where Debian has the CNI plugins.
const plugins = "/usr/lib/cni"

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

// waitSocket waits until the runtime answers.
func (n *Node) waitSocket() {
	n.c.t.Helper()
	n.await(n.Gantry, func() error {
		_, err := n.Crictl("version")
		return err
	})
}

// await waits until answers returns nil, for as long as p runs.
func (n *Node) await(p *Process, answers func() error) {
	n.c.t.Helper()
	deadline := time.After(readyTime)
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		err := answers()
		if err == nil {
			return
		}
		if !p.Running() {
			n.c.t.Fatalf("%s ended: %v\n%s", p.Name, err, p.tail())
		}
		select {
		case <-tick.C:
		case <-deadline:
			n.c.t.Fatalf("%s does not answer: %v\n%s", p.Name, err, p.tail())
		}
	}
}

// daemon starts one of the programs of `make docker-tools` on the node; its helpers stand beside it.
func (n *Node) daemon(name, program string, args ...string) *Process {
	n.c.t.Helper()
	dir := filepath.Join(os.Getenv("GANTRY_TOOLS"), "docker")
	if _, err := os.Stat(filepath.Join(dir, program)); err != nil {
		n.c.t.Fatalf("%s is not there: `make docker-tools` builds it", filepath.Join(dir, program))
	}
	return run(n.c.t, n.c.Logs, name+"-"+n.Name, func() *exec.Cmd {
		cmd := n.Command(append([]string{filepath.Join(dir, program)}, args...)...)
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		return cmd
	})
}

// peerConfig is a containerd with a CRI server at address.
func (n *Node) peerConfig(address string) string {
	n.trustRegistries()
	return n.c.write(n.Name+"/containerd.toml", fmt.Sprintf(`version = 3
root = %q
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
address = %q
[ttrpc]
address = %q
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = %q
[plugins."io.containerd.cri.v1.images".registry]
config_path = %q
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
conf_dir = %q
bin_dirs = [%q]
`, filepath.Join(n.Root, "containerd"), address, address+".ttrpc", Pause, n.certs(), n.cniConf(), plugins))
}

// startDocker starts a Docker Engine at its usual socket, without networks of its own.
func (n *Node) startDocker() {
	n.c.t.Helper()
	root := filepath.Join(n.Root, "docker")
	const address = "/run/docker-containerd.sock"
	config := n.c.write(n.Name+"/docker-containerd.toml", fmt.Sprintf(`version = 3
root = %q
state = "/run/docker-containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"]
[grpc]
address = %q
[ttrpc]
address = %q
`, filepath.Join(root, "containerd"), address, address+".ttrpc"))
	containerd := n.daemon("docker-containerd", "containerd", "--config", config)
	n.awaitAlways(containerd, "test", "-S", address)
	dockerd := n.daemon("dockerd", "dockerd", "--host", "unix:///run/docker.sock", "--data-root", filepath.Join(root, "lib"),
		"--exec-root", "/run/docker", "--pidfile", "/run/docker.pid", "--config-file", n.c.write(n.Name+"/daemon.json", "{}"),
		"--containerd", address, "--cgroup-parent", n.cgroup, "--bridge", "none", "--iptables=false", "--ip6tables=false",
		"--insecure-registry", registry, "--insecure-registry", lockedRegistry)
	n.awaitAlways(dockerd, "curl", "-sf", "--unix-socket", "/run/docker.sock", "http://docker/_ping")
}

// below is a part of the node that its runtime needs.
type below struct {
	*Process
	answers func() error
}

// awaitAlways waits until a command on the node succeeds, now and after each boot.
func (n *Node) awaitAlways(p *Process, command ...string) {
	n.c.t.Helper()
	answers := func() error {
		_, err := n.Run(command...)
		return err
	}
	n.await(p, answers)
	n.below = append(n.below, below{p, answers})
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
	return slices.DeleteFunc(n.Processes(), func(p node.Process) bool { return filepath.Base(p.Command[0]) != "gantry-keeper" })
}

// Processes returns what runs in the node's mount namespace: all but what keeps the namespace, and containers.
func (n *Node) Processes() []node.Process {
	ours, err := os.Readlink(namespace(n.holder.Process.Pid))
	if err != nil {
		return nil
	}
	return node.Processes(func(p node.Process) bool {
		theirs, err := os.Readlink(namespace(p.Pid))
		return err == nil && theirs == ours && p.Pid != n.holder.Process.Pid
	})
}

func namespace(pid int) string { return fmt.Sprintf("/proc/%d/ns/mnt", pid) }

// killLeft ends what outlives a runtime's server, as an operator would who takes the node down.
func (n *Node) killLeft() {
	for processes := n.Processes(); len(processes) > 0; processes = n.Processes() {
		for _, p := range processes {
			_ = syscall.Kill(p.Pid, syscall.SIGKILL)
			node.WaitGone(p.Pid)
		}
	}
}
