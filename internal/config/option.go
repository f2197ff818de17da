package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// option is one line of the table that ties a key of the file to its flag and to its legal values.
type option struct {
	key   string // as in the file, with dots between tables
	flag  string // "" when it has none
	kind  string // shown after the flag; "" for one that needs no value
	usage string
	get   func(*Options) value
	check func(*Options) error // nil when every value is legal
}

// value is a field of Options that a flag may set. Set's first says that it is the first of its
// flag: a list then replaces what the file said.
type value interface {
	Set(s string, first bool) error
	String() string
}

type text struct{ p *string }

func (v text) Set(s string, _ bool) error { *v.p = s; return nil }
func (v text) String() string             { return *v.p }

type number struct{ p *int }

func (v number) String() string { return strconv.Itoa(*v.p) }
func (v number) Set(s string, _ bool) error {
	n, err := strconv.Atoi(s)
	if err != nil {
		return fmt.Errorf("%q is not a number", s)
	}
	*v.p = n
	return nil
}

type truth struct{ p *bool }

func (v truth) String() string { return strconv.FormatBool(*v.p) }
func (v truth) Set(s string, _ bool) error {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return fmt.Errorf("%q is neither true nor false", s)
	}
	*v.p = b
	return nil
}

type span struct{ p *Duration }

func (v span) String() string             { return time.Duration(*v.p).String() }
func (v span) Set(s string, _ bool) error { return v.p.UnmarshalText([]byte(s)) }

type list struct{ p *[]string }

func (v list) String() string { return strings.Join(*v.p, ",") }
func (v list) Set(s string, first bool) error {
	if first {
		*v.p = nil
	}
	*v.p = append(slices.Clip(*v.p), s)
	return nil
}

// table adds to what the file said: a flag replaces only the name it gives.
type table struct{ p *map[string]string }

func (v table) String() string {
	var pairs []string
	for _, k := range slices.Sorted(maps.Keys(*v.p)) {
		pairs = append(pairs, k+"="+(*v.p)[k])
	}
	return strings.Join(pairs, ",")
}

func (v table) Set(s string, _ bool) error {
	name, path, ok := strings.Cut(s, "=")
	if !ok || name == "" || path == "" {
		return fmt.Errorf("%q is not NAME=PATH", s)
	}
	m := maps.Clone(*v.p)
	if m == nil {
		m = map[string]string{}
	}
	m[name] = path
	*v.p = m
	return nil
}

// options is the table, in the order of the file.
func options() []option {
	return slices.Concat(serverOptions(), runtimeOptions(), dockerOptions(), networkOptions(), nriOptions())
}

func nriOptions() []option {
	return []option{
		{"nri.enabled", "nri", "BOOL", "let plugins (NRI) see and change pods",
			func(o *Options) value { return truth{&o.NRI.Enabled} }, nil},
		{"nri.socket", "nri-socket", "PATH", "unix socket where NRI plugins connect",
			func(o *Options) value { return text{&o.NRI.Socket} }, func(o *Options) error { return socketPath(o.NRI.Socket) }},
		{"nri.plugin_dir", "nri-plugin-dir", "DIR", "NRI plugins that the server starts",
			func(o *Options) value { return text{&o.NRI.PluginDir} }, func(o *Options) error { return absolute(o.NRI.PluginDir) }},
		{"nri.config_dir", "nri-config-dir", "DIR", "what those plugins are told",
			func(o *Options) value { return text{&o.NRI.ConfigDir} }, func(o *Options) error { return absolute(o.NRI.ConfigDir) }},
		{"nri.registration_timeout", "nri-registration-timeout", "TIME", "until an NRI plugin has said who it is",
			func(o *Options) value { return span{&o.NRI.RegistrationTimeout} }, func(o *Options) error { return waits(o.NRI.RegistrationTimeout) }},
		{"nri.request_timeout", "nri-request-timeout", "TIME", "until an NRI plugin has answered",
			func(o *Options) value { return span{&o.NRI.RequestTimeout} }, func(o *Options) error { return waits(o.NRI.RequestTimeout) }},
	}
}

func serverOptions() []option {
	return []option{
		{"listen", "listen", "unix:///PATH", "Unix socket of the CRI server",
			func(o *Options) value { return text{&o.Listen} }, func(o *Options) error { return unixURL(o.Listen) }},
		{"root", "root", "DIR", "images, writable layers and the journal",
			func(o *Options) value { return text{&o.Root} }, func(o *Options) error { return absolute(o.Root) }},
		{"state", "state", "DIR", "sockets, streams and mounts: what a reboot may forget",
			func(o *Options) value { return text{&o.State} }, checkState},
		{"engine", "engine", "NAME", "engine of pods that name no handler: native or docker",
			func(o *Options) value { return text{&o.Engine} }, func(o *Options) error { return oneOf(o.Engine, EngineNative, EngineDocker) }},
		{"log.level", "log-level", "LEVEL", "debug, info, warn or error",
			func(o *Options) value { return text{&o.Log.Level} }, func(o *Options) error { return oneOf(o.Log.Level, "debug", "info", "warn", "error") }},
		{"log.format", "log-format", "FORMAT", "text or json",
			func(o *Options) value { return text{&o.Log.Format} }, func(o *Options) error { return oneOf(o.Log.Format, "text", "json") }},
		{"container_logs.rate", "log-rate", "BYTES", "bytes of output a second that a container's log takes; 0 is no bound",
			func(o *Options) value { return number{&o.Logs.Rate} }, func(o *Options) error { return notNegative(o.Logs.Rate) }},
		{"container_logs.size", "log-size", "BYTES", "bytes that a container's log file may have until it is rotated; 0 is no bound",
			func(o *Options) value { return number{&o.Logs.Size} }, func(o *Options) error { return notNegative(o.Logs.Size) }},
		{"container_logs.full_disk_wait", "log-full-disk-wait", "DURATION", "how long output waits for a full disk before it is dropped; 0s is for ever",
			func(o *Options) value { return span{&o.Logs.Wait} }, func(o *Options) error { return notNegative(int(o.Logs.Wait)) }},
		{"resource_classes.blockio_file", "blockio-file", "FILE", "classes of block I/O that pods may ask for",
			func(o *Options) value { return text{&o.Classes.BlockIO} }, func(o *Options) error { return optional(o.Classes.BlockIO, absolute) }},
		{"resource_classes.rdt_file", "rdt-file", "FILE", "classes of Intel RDT that pods may ask for (default those that are in resctrl)",
			func(o *Options) value { return text{&o.Classes.RDT} }, func(o *Options) error { return optional(o.Classes.RDT, absolute) }},
		{"selinux.enabled", "selinux", "BOOL", "label pods where the kernel has SELinux and its policy has labels of containers",
			func(o *Options) value { return truth{&o.SELinux.Enabled} }, nil},
		{"streaming.listen", "streaming-listen", "HOST:PORT", "address of exec, attach and port-forward",
			func(o *Options) value { return text{&o.Streaming.Listen} }, func(o *Options) error { return hostPort(o.Streaming.Listen) }},
		{"streaming.tls_cert", "streaming-tls-cert", "FILE", "certificate of the streaming address; needs --streaming-tls-key (default plain HTTP)",
			func(o *Options) value { return text{&o.Streaming.TLSCert} }, checkStreamingTLS},
		{"streaming.tls_key", "streaming-tls-key", "FILE", "key of the streaming certificate",
			func(o *Options) value { return text{&o.Streaming.TLSKey} }, func(o *Options) error { return optional(o.Streaming.TLSKey, absolute) }},
		{"metrics.listen", "metrics-listen", "HOST:PORT", "address of /metrics and /healthz; empty for none",
			func(o *Options) value { return text{&o.Metrics.Listen} }, checkMetrics},
	}
}

func runtimeOptions() []option {
	return []option{
		{"runtime.default", "default-runtime", "NAME", "runtime of pods that name no handler (default crun where it is found, else runc)",
			func(o *Options) value { return text{&o.Runtime.Default} }, checkDefaultRuntime},
		{"runtime.paths", "runtime", "NAME=PATH", "an OCI runtime and handler; may be repeated (default crun and runc on PATH)",
			func(o *Options) value { return table{&o.Runtime.Paths} }, checkRuntimes},
		{"runtime.options", "runtime-options", "NAME=OPTIONS", "options that a runtime is given before every command, separated by spaces; may be repeated",
			func(o *Options) value { return table{&o.Runtime.Options} }, checkRuntimeOptions},
		{"runtime.cdi_spec_dirs", "cdi-spec-dir", "DIR", "files of devices' vendors (CDI); may be repeated",
			func(o *Options) value { return list{&o.Runtime.CDIDirs} }, func(o *Options) error { return each(o.Runtime.CDIDirs, absolute) }},
		{"cgroup.driver", "cgroup-driver", "DRIVER", "cgroupfs or systemd",
			func(o *Options) value { return text{&o.Cgroup.Driver} }, func(o *Options) error { return oneOf(o.Cgroup.Driver, "cgroupfs", "systemd") }},
		{"keeper.binary", "keeper", "PATH", "gantry-keeper (default beside the gantry binary, else on PATH)",
			func(o *Options) value { return text{&o.Keeper.Binary} }, func(o *Options) error { return optional(o.Keeper.Binary, absolute) }},
		{"images.certs_dir", "certs-dir", "DIR", "registries' <host>/hosts.toml",
			func(o *Options) value { return text{&o.Images.CertsDir} }, func(o *Options) error { return absolute(o.Images.CertsDir) }},
		{"images.pinned", "pinned-image", "REF", "an image that garbage collection must spare; may be repeated",
			func(o *Options) value { return list{&o.Images.Pinned} }, func(o *Options) error { return each(o.Images.Pinned, imageRef) }},
		{"images.parallel_layers", "parallel-layers", "N", "layers fetched at once by all pulls together",
			func(o *Options) value { return number{&o.Images.Parallel} }, checkParallel},
		{"images.bandwidth", "pull-bandwidth", "MBPS", "megabytes a second that all pulls together may take; 0 is no limit",
			func(o *Options) value { return number{&o.Images.Bandwidth} }, checkBandwidth},
		{"images.project_ids", "project-ids", "FIRST-LAST", "project ids that count what containers write; empty for none",
			func(o *Options) value { return text{&o.Images.Projects} }, checkProjects},
		{"images.sync", "image-sync", "WHEN", "always or never write an image to the disk before its pull returns",
			func(o *Options) value { return text{&o.Images.Sync} }, func(o *Options) error { return oneOf(o.Images.Sync, "always", "never") }},
	}
}

func dockerOptions() []option {
	return []option{
		{"docker.endpoint", "docker-endpoint", "URL", "Docker Engine of this machine: unix:///PATH or tcp://HOST:PORT (default none; with --engine docker " + DefaultDocker + ")",
			func(o *Options) value { return text{&o.Docker.Endpoint} }, func(o *Options) error { return optional(o.Docker.Endpoint, dockerURL) }},
		{"docker.tls_ca", "docker-tls-ca", "FILE", "who signs the certificate of a tcp Docker Engine",
			func(o *Options) value { return text{&o.Docker.TLSCA} }, func(o *Options) error { return optional(o.Docker.TLSCA, absolute) }},
		{"docker.tls_cert", "docker-tls-cert", "FILE", "our certificate for a tcp Docker Engine; needs --docker-tls-key",
			func(o *Options) value { return text{&o.Docker.TLSCert} }, checkDockerTLS},
		{"docker.tls_key", "docker-tls-key", "FILE", "key of the certificate for Docker Engine",
			func(o *Options) value { return text{&o.Docker.TLSKey} }, func(o *Options) error { return optional(o.Docker.TLSKey, absolute) }},
		{"docker.pause_image", "docker-pause-image", "REF", "image that holds a pod's namespaces on Docker (default built in)",
			func(o *Options) value { return text{&o.Docker.PauseImage} }, func(o *Options) error { return optional(o.Docker.PauseImage, imageRef) }},
		{"docker.logs", "docker-logs", "WAY", "driver (gantry-keeper) or api: how output comes from Docker",
			func(o *Options) value { return text{&o.Docker.Logs} }, func(o *Options) error { return oneOf(o.Docker.Logs, "driver", "api") }},
		{"docker.take_over", "take-over", "", "take over the pods that cri-dockerd or dockershim left on Docker: the kubelet replaces them",
			func(o *Options) value { return truth{&o.Docker.TakeOver} }, checkTakeOver},
	}
}

func networkOptions() []option {
	return []option{
		{"network.mode", "network", "MODE", "cni or builtin",
			func(o *Options) value { return text{&o.Network.Mode} }, func(o *Options) error { return oneOf(o.Network.Mode, "cni", "builtin") }},
		{"network.netns_dir", "netns-dir", "DIR", "where network namespaces are pinned",
			func(o *Options) value { return text{&o.Network.NetNSDir} }, func(o *Options) error { return absolute(o.Network.NetNSDir) }},
		{"network.cni_conf_dir", "cni-conf-dir", "DIR", "CNI configurations",
			func(o *Options) value { return text{&o.Network.CNIConfDir} }, func(o *Options) error { return absolute(o.Network.CNIConfDir) }},
		{"network.cni_bin_dirs", "cni-bin-dir", "DIR", "CNI plugins; may be repeated",
			func(o *Options) value { return list{&o.Network.CNIBinDirs} }, func(o *Options) error { return each(o.Network.CNIBinDirs, absolute) }},
		{"network.builtin.bridge", "bridge", "NAME", "bridge of the builtin network",
			func(o *Options) value { return text{&o.Network.Builtin.Bridge} }, func(o *Options) error { return interfaceName(o.Network.Builtin.Bridge) }},
		{"network.builtin.subnets", "subnet", "CIDR", "pod addresses of the builtin network; may be repeated",
			func(o *Options) value { return list{&o.Network.Builtin.Subnets} }, func(o *Options) error { return subnets(o.Network.Builtin.Subnets) }},
		{"network.builtin.mtu", "mtu", "BYTES", "MTU of the builtin network; 0 for the kernel's",
			func(o *Options) value { return number{&o.Network.Builtin.MTU} }, checkMTU},
	}
}
