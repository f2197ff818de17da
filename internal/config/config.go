// Package config holds every option of the server: its default, its name in the configuration file,
// its flag, and what values it may have. It constructs nothing.
package config

import (
	"bytes"
	"fmt"
	"path/filepath"
	"time"

	"github.com/pelletier/go-toml/v2"

	"gantry/internal/bridge"
)

// Version is gantry's own version; the linker sets it.
var Version = "unknown"

// DefaultFile is read when it exists and no other file is named.
const DefaultFile = "/etc/gantry/config.toml"

// Options are the server's options. The comments of the fields are printed by `gantry config`.
type Options struct {
	Listen string `toml:"listen" comment:"Unix socket of the CRI server."`
	Root   string `toml:"root" comment:"Images, writable layers and the journal: what survives a reboot."`
	State  string `toml:"state" comment:"Sockets, streams and mounts: what a reboot may forget. On tmpfs, or it gets one of its own."`
	Engine string `toml:"engine" comment:"What runs the pods whose RuntimeClass names no other handler."`

	Log       Log       `toml:"log"`
	Runtime   Runtime   `toml:"runtime"`
	Docker    Docker    `toml:"docker"`
	Cgroup    Cgroup    `toml:"cgroup"`
	Keeper    Keeper    `toml:"keeper"`
	Images    Images    `toml:"images"`
	Network   Network   `toml:"network"`
	NRI       NRI       `toml:"nri"`
	Logs      Logs      `toml:"container_logs"`
	Classes   Classes   `toml:"resource_classes"`
	SELinux   SELinux   `toml:"selinux"`
	Streaming Streaming `toml:"streaming"`
	Metrics   Metrics   `toml:"metrics"`
}

// Log is how the server logs.
type Log struct {
	Level  string `toml:"level" comment:"debug, info, warn or error."`
	Format string `toml:"format" comment:"text or json, a line an event on standard error."`
}

// Runtime names the OCI runtimes; each is a RuntimeClass handler of the same name.
type Runtime struct {
	Default string            `toml:"default" comment:"Runtime of pods that name no handler; empty: crun where it is found, else runc."`
	CDIDirs []string          `toml:"cdi_spec_dirs" comment:"Files of devices' vendors (CDI); where two have one device, the later directory wins."`
	Options map[string]string `toml:"options" comment:"Handler = options, separated by spaces, that its binary is given before every command."`
	Paths   map[string]string `toml:"paths" comment:"Handler = binary. crun and runc are found on PATH where they are not named here."`
}

// Docker is the Docker Engine that pods may run on.
type Docker struct {
	Endpoint   string `toml:"endpoint" comment:"API of a Docker Engine on this machine, unix:///PATH or tcp://HOST:PORT: it adds the handler docker. Empty: none, or /var/run/docker.sock with engine = 'docker'."`
	TLSCA      string `toml:"tls_ca" comment:"PEM file of who signs the daemon's certificate; empty: tcp is spoken to in the clear."`
	TLSCert    string `toml:"tls_cert" comment:"PEM file of the certificate that the daemon knows us by."`
	TLSKey     string `toml:"tls_key" comment:"PEM file of the certificate's key."`
	PauseImage string `toml:"pause_image" comment:"Image of the container that holds a pod's namespaces; empty, or when it can't be pulled: the built-in one."`
	Logs       string `toml:"logs" comment:"driver: dockerd gives output to gantry-keeper, its log driver. api: the server follows Docker's API."`
	TakeOver   bool   `toml:"take_over" comment:"Take over the pods that cri-dockerd or dockershim left on Docker: they are shown as not ready, and the kubelet replaces them."`
}

// DefaultDocker is where Docker Engine listens unless it was told otherwise.
const DefaultDocker = "unix:///var/run/docker.sock"

// The engines that pods may be on.
const (
	EngineNative = "native"
	EngineDocker = "docker"
)

// Cgroup is how pods' cgroups are made.
type Cgroup struct {
	Driver string `toml:"driver" comment:"cgroupfs or systemd; the kubelet asks for it and follows."`
}

// Keeper is the process that holds the containers' streams.
type Keeper struct {
	Binary string `toml:"binary" comment:"gantry-keeper; empty: beside the gantry binary, else on PATH."`
}

// Images is where images come from.
type Images struct {
	CertsDir string   `toml:"certs_dir" comment:"Registries' mirrors and certificates: <host>/hosts.toml, as containerd reads them."`
	Pinned   []string `toml:"pinned" comment:"Images that garbage collection must spare."`
	Parallel int      `toml:"parallel_layers" comment:"Layers fetched at once by all pulls together."`
	// Bandwidth is in megabytes a second.
	Bandwidth int    `toml:"bandwidth" comment:"Megabytes a second that all pulls together take from registries; 0 is no limit."`
	Projects  string `toml:"project_ids" comment:"Project ids that count what containers write, where the file system has project quotas (mounted with prjquota); empty: never."`
	Sync      string `toml:"sync" comment:"always: an image is on the disk before its pull returns. never: a power cut may damage images, until verify --repair or a pull mends them."`
}

// Network is how pods are connected.
type Network struct {
	Mode       string   `toml:"mode" comment:"cni or builtin."`
	NetNSDir   string   `toml:"netns_dir" comment:"Where network namespaces are pinned; ip netns expects /var/run/netns."`
	CNIConfDir string   `toml:"cni_conf_dir" comment:"CNI configurations, watched; the first valid one in lexical order is used."`
	CNIBinDirs []string `toml:"cni_bin_dirs" comment:"CNI plugins, searched in this order."`
	Builtin    Builtin  `toml:"builtin"`
}

// Builtin are the options of the builtin network.
type Builtin struct {
	Bridge  string   `toml:"bridge" comment:"Name of the bridge, made when the first pod comes."`
	Subnets []string `toml:"subnets" comment:"Pod addresses: one IPv4 network, one IPv6 network, or both."`
	MTU     int      `toml:"mtu" comment:"0: the kernel's default."`
}

// NRI is where plugins of the Node Resource Interface are.
type NRI struct {
	Enabled             bool     `toml:"enabled" comment:"Plugins (Node Resource Interface) may see and change pods."`
	Socket              string   `toml:"socket" comment:"Unix socket where plugins connect; one that another process listens at is left alone."`
	PluginDir           string   `toml:"plugin_dir" comment:"Plugins that the server starts, named NN-name."`
	ConfigDir           string   `toml:"config_dir" comment:"What those are told, in NN-name.conf or name.conf."`
	RegistrationTimeout Duration `toml:"registration_timeout" comment:"Until a plugin has said who it is."`
	RequestTimeout      Duration `toml:"request_timeout" comment:"Until a plugin has answered; one that does not is disconnected, and pods go on without it."`
}

// Duration is a time that reads and writes as in "1m30s".
type Duration time.Duration

// MarshalText writes it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads it.
func (d *Duration) UnmarshalText(text []byte) error {
	t, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is no time such as 2s", text)
	}
	*d = Duration(t)
	return nil
}

// SELinux is about labels of processes and files.
type SELinux struct {
	Enabled bool `toml:"enabled" comment:"Label pods where the kernel has SELinux and its policy has labels of containers. false: pods that ask for a label are refused."`
}

// Classes are of resources that pods ask for by annotation.
type Classes struct {
	BlockIO string `toml:"blockio_file" comment:"Classes of block I/O, as github.com/intel/goresctrl reads them; empty: there are none, and pods that ask for one are refused."`
	RDT     string `toml:"rdt_file" comment:"Classes of Intel RDT, made in resctrl at the start; empty: those that are there."`
}

// Logs are bounds of every container's log. A pod may narrow them by annotations: gantry/log-rate, gantry/log-size
// and gantry/log-full-wait.
type Logs struct {
	Rate int      `toml:"rate" comment:"Bytes of output a second that a container's log takes, on average; more is dropped, whole lines of it, and counted. 0 is no bound."`
	Size int      `toml:"size" comment:"Bytes that a log file may have until it is rotated; more is dropped and counted. 0 is no bound."`
	Wait Duration `toml:"full_disk_wait" comment:"How long output waits for a full disk before it is dropped and counted; 0s waits for ever, and containers with it."`
}

// Streaming is the HTTP server of exec, attach and port-forward.
type Streaming struct {
	Listen  string `toml:"listen" comment:"host:port; port 0 takes a free one. The kubelet connects to it, nobody else should reach it."`
	TLSCert string `toml:"tls_cert" comment:"PEM file of a certificate for the host of listen, which the kubelet's system trusts; read for every connection. Empty: plain HTTP."`
	TLSKey  string `toml:"tls_key" comment:"PEM file of the certificate's key."`
}

// Metrics is the HTTP server of /metrics and /healthz.
type Metrics struct {
	Listen string `toml:"listen" comment:"host:port; empty: no such server."`
}

// Default returns the options of a server that was told nothing.
func Default() Options {
	return Options{
		Listen:  "unix:///run/gantry/gantry.sock",
		Root:    "/var/lib/gantry",
		State:   "/run/gantry",
		Engine:  EngineNative,
		Log:     Log{Level: "info", Format: "text"},
		Runtime: Runtime{CDIDirs: []string{"/etc/cdi", "/var/run/cdi"}, Paths: map[string]string{}, Options: map[string]string{}},
		Docker:  Docker{Logs: "driver"},
		Cgroup:  Cgroup{Driver: "cgroupfs"},
		Images:  Images{CertsDir: "/etc/gantry/certs.d", Pinned: []string{}, Parallel: 4, Projects: "2000000000-2000999999", Sync: "always"},
		Network: Network{
			Mode:       "cni",
			NetNSDir:   "/var/run/netns",
			CNIConfDir: "/etc/cni/net.d",
			CNIBinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"},
			Builtin: Builtin{
				Bridge:  bridge.DefaultBridge,
				Subnets: []string{bridge.DefaultSubnet4, bridge.DefaultSubnet6},
			},
		},
		SELinux: SELinux{Enabled: true},
		NRI: NRI{
			Enabled: true, Socket: "/var/run/nri/nri.sock", PluginDir: "/opt/nri/plugins", ConfigDir: "/etc/nri/conf.d",
			RegistrationTimeout: Duration(5 * time.Second), RequestTimeout: Duration(2 * time.Second),
		},
		Logs:      Logs{Wait: Duration(30 * time.Second)},
		Streaming: Streaming{Listen: "127.0.0.1:0"},
	}
}

// Finder looks for programs: exec.LookPath, and the directory of the running binary.
type Finder struct {
	LookPath func(name string) (string, error)
	SelfDir  string
}

// Resolve fills in what depends on the machine: runtimes on PATH, the default one, the keeper. What
// is not found stays empty.
func (o *Options) Resolve(f Finder) {
	paths := make(map[string]string, len(o.Runtime.Paths)+2)
	for _, name := range []string{"crun", "runc"} {
		if p, err := f.LookPath(name); err == nil {
			paths[name] = p
		}
	}
	for name, p := range o.Runtime.Paths {
		paths[name] = p
	}
	o.Runtime.Paths = paths
	for _, name := range []string{"crun", "runc"} {
		if _, ok := paths[name]; ok && o.Runtime.Default == "" {
			o.Runtime.Default = name
		}
	}
	if o.Engine == EngineDocker && o.Docker.Endpoint == "" {
		o.Docker.Endpoint = DefaultDocker
	}
	if o.Keeper.Binary != "" {
		return
	}
	for _, name := range []string{filepath.Join(f.SelfDir, "gantry-keeper"), "gantry-keeper"} {
		if p, err := f.LookPath(name); err == nil {
			o.Keeper.Binary = p
			return
		}
	}
}

// TOML writes the options as a configuration file that reads back as the same options.
func (o *Options) TOML() ([]byte, error) {
	var buf bytes.Buffer
	enc := toml.NewEncoder(&buf)
	enc.SetIndentTables(false)
	if err := enc.Encode(o); err != nil {
		return nil, fmt.Errorf("write options as TOML: %w", err)
	}
	return buf.Bytes(), nil
}
