package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

// gantry starts gantry with a network, "builtin" or "cni".
func gantry(ctx context.Context, o *options, network string) (*server, error) {
	p, err := newPlace(o.dir, "gantry-"+network)
	if err != nil {
		return nil, err
	}
	conf, err := p.network()
	if err != nil {
		return nil, err
	}
	s, err := begin(ctx, o.tools, p, o.gantry, "serve", "--root", filepath.Join(p.dir, "root"), "--state", p.state,
		"--listen", "unix://"+p.socket, "--network", network, "--cni-conf-dir", conf, "--cni-bin-dir", plugins,
		"--certs-dir", filepath.Join(p.dir, "certs.d"), "--netns-dir", filepath.Join(p.state, "netns"), "--metrics-listen", "")
	if err != nil {
		return nil, err
	}
	s.Name, s.Network = "gantry", network
	return s, nil
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
sandbox = "127.0.0.1:5000/bench/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
conf_dir = %q
bin_dirs = [%q]
`

func containerd(ctx context.Context, o *options) (*server, error) {
	p, err := newPlace(o.dir, "containerd")
	if err != nil {
		return nil, err
	}
	conf, err := p.network()
	if err != nil {
		return nil, err
	}
	file, err := p.write("config.toml", fmt.Sprintf(containerdConfig, filepath.Join(p.dir, "root"), filepath.Join(p.state, "state"),
		p.socket, p.socket+".ttrpc", conf, plugins))
	if err != nil {
		return nil, err
	}
	s, err := begin(ctx, o.tools, p, o.containerd, "--config", file, "--log-level", "warn")
	if err != nil {
		return nil, err
	}
	s.Network = "cni"
	return s, nil
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
pause_image = "127.0.0.1:5000/bench/pause:1"
signature_policy = "DIR/policy.json"
signature_policy_dir = "DIR/policies"
[crio.network]
network_dir = "CONF"
plugin_dirs = ["PLUGINS"]
[crio.nri]
enable_nri = false
`

func crio(ctx context.Context, o *options) (*server, error) {
	p, err := newPlace(o.dir, "crio")
	if err != nil {
		return nil, err
	}
	conf, err := p.network()
	if err != nil {
		return nil, err
	}
	if _, err = p.write("policy.json", `{"default": [{"type": "insecureAcceptAnything"}]}`); err != nil {
		return nil, err
	}
	if _, err = p.write("registries.conf", "[[registry]]\nlocation = \"127.0.0.1:5000\"\ninsecure = true\n"); err != nil {
		return nil, err
	}
	text := strings.NewReplacer("DIR", p.dir, "STATE", p.state, "SOCKET", p.socket, "CONF", conf, "PLUGINS", plugins,
		"PINNS", filepath.Join(o.tools, "pinns"), "CRUN", filepath.Join(o.tools, "oldcrun")).Replace(crioConfig)
	file, err := p.write("crio.conf", text)
	if err != nil {
		return nil, err
	}
	s, err := begin(ctx, o.tools, p, o.crio, "--config", file, "--config-dir", filepath.Join(p.dir, "crio.conf.d"))
	if err != nil {
		return nil, err
	}
	s.Name, s.Network = "CRI-O", "cni"
	return s, nil
}
