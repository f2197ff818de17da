package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"gantry/internal/bench"
)

// bridgeConf is the network of every runtime that uses CNI plugins.
const bridgeConf = `{
  "cniVersion": "1.0.0",
  "name": "bench",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local", "dataDir": "LEASES",
        "ranges": [[{"subnet": "10.86.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

const plugins = "/usr/lib/cni"

func (p place) write(name, content string) (string, error) {
	file := filepath.Join(p.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	return file, os.WriteFile(file, []byte(content), 0o600)
}

// network writes the CNI configuration and returns its directory.
func (p place) network() (string, error) {
	file, err := p.write("net.d/10-bench.conflist", strings.ReplaceAll(bridgeConf, "LEASES", filepath.Join(p.state, "leases")))
	return filepath.Dir(file), err
}

// gantry is gantry with a network, "builtin" or "cni". That with CNI does not sync what it pulls: so do its
// peers by default, and for the rest of what is measured it makes no difference.
func gantry(o *options, _ *registry, network string) (setup, error) {
	p, err := newPlace(o.dir, "gantry-"+network)
	if err != nil {
		return setup{}, err
	}
	command, err := p.gantry(o.gantry, network)
	if network == "cni" {
		command = append(command, "--image-sync", "never")
	}
	return setup{place: p, label: bench.Subject, network: network, command: command}, err
}

// gantry is the command of a gantry in that place.
func (p place) gantry(binary, network string) ([]string, error) {
	conf, err := p.network()
	return []string{binary, "serve", "--root", filepath.Join(p.dir, "root"), "--state", p.state,
		"--listen", "unix://" + p.socket, "--network", network, "--cni-conf-dir", conf, "--cni-bin-dir", plugins,
		"--certs-dir", filepath.Join(p.dir, "certs.d"), "--netns-dir", filepath.Join(p.state, "netns"), "--metrics-listen", ""}, err
}

const containerdConfig = `version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
address = %q
[ttrpc]
address = %q
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = %q
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
conf_dir = %q
bin_dirs = [%q]
`

func containerd(o *options, r *registry) (setup, error) {
	p, err := newPlace(o.dir, "containerd")
	if err != nil {
		return setup{}, err
	}
	conf, err := p.network()
	if err != nil {
		return setup{}, err
	}
	file, err := p.write("config.toml", fmt.Sprintf(containerdConfig, filepath.Join(p.dir, "root"), filepath.Join(p.state, "state"),
		p.socket, p.socket+".ttrpc", r.pause, conf, plugins))
	return setup{place: p, label: "containerd", network: "cni", command: []string{o.containerd, "--config", file, "--log-level", "warn"}}, err
}

// debianConfig is of the version that containerd 1.6 reads.
const debianConfig = `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = %q
[ttrpc]
address = %q
[plugins."io.containerd.internal.v1.opt"]
path = %q
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = %q
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = %q
bin_dir = %q
`

// debian is the containerd that Debian installs, with the shim and the runc beside it.
func debian(o *options, r *registry) (setup, error) {
	p, err := newPlace(o.dir, "debian")
	if err != nil {
		return setup{}, err
	}
	conf, err := p.network()
	if err != nil {
		return setup{}, err
	}
	file, err := p.write("config.toml", fmt.Sprintf(debianConfig, filepath.Join(p.dir, "root"), filepath.Join(p.state, "state"),
		p.socket, p.socket+".ttrpc", filepath.Join(p.dir, "opt"), r.pause, conf, plugins))
	return setup{place: p, label: "Debian's containerd", network: "cni", command: []string{o.debian, "--config", file, "--log-level", "warn"}}, err
}

const crioConfig = `[crio]
root = "DIR/root"
runroot = "STATE/run"
storage_driver = "overlay"
log_dir = "DIR/pods"
version_file = "STATE/version"
version_file_persist = "DIR/version"
clean_shutdown_file = "DIR/clean"
[crio.api]
listen = "SOCKET"
stream_port = "0"
[crio.runtime]
default_runtime = "crun"
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
pinns_path = "PINNS"
namespaces_dir = "STATE/ns"
container_exits_dir = "STATE/exits"
container_attach_socket_dir = "STATE/attach"
pids_limit = 4096
drop_infra_ctr = true
hooks_dir = []
apparmor_profile = "unconfined"
[crio.runtime.runtimes.crun]
runtime_path = "CRUN"
runtime_root = "STATE/crun"
monitor_path = "/usr/bin/conmon"
monitor_cgroup = "pod"
[crio.image]
pause_image = "PAUSE"
signature_policy = "DIR/policy.json"
signature_policy_dir = "DIR/policies"
[crio.network]
network_dir = "CONF"
plugin_dirs = ["PLUGINS"]
[crio.nri]
enable_nri = false
`

func crio(o *options, r *registry) (setup, error) {
	p, err := newPlace(o.dir, "crio")
	if err != nil {
		return setup{}, err
	}
	conf, err := p.network()
	if err != nil {
		return setup{}, err
	}
	if _, err = p.write("policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`); err != nil {
		return setup{}, err
	}
	if _, err = p.write("registries.conf", "[[registry]]\nlocation = \""+r.Host+"\"\ninsecure = true\n"); err != nil {
		return setup{}, err
	}
	text := strings.NewReplacer("DIR", p.dir, "STATE", p.state, "SOCKET", p.socket, "CONF", conf, "PLUGINS", plugins, "PAUSE", r.pause,
		"PINNS", filepath.Join(o.tools, "pinns"), "CRUN", filepath.Join(o.tools, "oldcrun")).Replace(crioConfig)
	file, err := p.write("crio.conf", text)
	return setup{place: p, label: "CRI-O", network: "cni",
		command: []string{o.crio, "--config", file, "--config-dir", filepath.Join(p.dir, "crio.conf.d")}}, err
}
