// Package cni connects pods to their networks through libcni: the plugins that a configuration
// directory names, or a network built into the server. It holds what the specification leaves to
// the runtime: which configuration counts, what a pod is disconnected with, how long a plugin may
// take and what is collected after a crash.
package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"

	"gantry/internal/keylock"
	"gantry/internal/pod"
)

// Options say where a Network finds configuration and plugins.
type Options struct {
	// ConfDir holds the network configurations; the first valid file in lexical order counts. It is
	// watched, also before it exists.
	ConfDir string
	// BinDirs are searched in order for plugins.
	BinDirs []string
	// CacheDir keeps what each pod was connected with. It must outlive a reboot, so that addresses
	// which plugins gave away before a power cut can be given back.
	CacheDir string
	// Exec runs plugins; nil runs them as processes.
	Exec invoke.Exec
	// Config is a network configuration list to use in place of ConfDir; nil: use ConfDir.
	Config []byte

	AttachTimeout time.Duration // 0: one minute
	DetachTimeout time.Duration // 0: one minute

	Log *slog.Logger // nil: slog.Default()
}

func (o Options) withDefaults() Options {
	o.AttachTimeout = orElse(o.AttachTimeout, time.Minute)
	o.DetachTimeout = orElse(o.DetachTimeout, time.Minute)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Exec == nil {
		o.Exec = NewExec(o.Log)
	}
	return o
}

func orElse(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}

// Attachment is a pod as its network sees it.
type Attachment struct {
	Key          pod.Key
	NetNS        string // path; may name nothing any more when detaching
	Metadata     pod.Metadata
	Ports        []pod.PortMapping
	DNS          *pod.DNS
	CgroupParent string
	Annotations  map[string]string
	// Network is what Attach returned, for Detach; nil when that is not known.
	Network *pod.Network
}

// Network connects pods. Its methods may be called from any goroutine; different pods do not wait
// for each other.
type Network struct {
	opts  Options
	cni   *libcni.CNIConfig
	cache *cache
	locks keylock.Locks[pod.Key]
	watch *watcher // nil: the configuration is built in, or cannot be watched

	reloading sync.Mutex // held while the directory is read: what was read last counts. Lock order: before mu.

	mu     sync.Mutex
	conf   *config              // guarded by mu; nil when there is none
	reason error                // guarded by mu; why conf is nil
	told   string               // guarded by mu; the outcome of the last load, as logged
	live   map[pod.Key]struct{} // guarded by mu; attached, or about to be, by this process
}

// New loads the configuration and begins to watch for changes. That there is none yet is no error:
// Status tells. A Config that is not valid is one.
func New(opts Options) (*Network, error) {
	opts = opts.withDefaults()
	if err := os.MkdirAll(filepath.Join(opts.CacheDir, idsDir), 0o700); err != nil {
		return nil, fmt.Errorf("cni cache: %w", err)
	}
	n := &Network{
		opts: opts,
		cni:  libcni.NewCNIConfigWithCacheDir(opts.BinDirs, opts.CacheDir, opts.Exec),
		live: make(map[pod.Key]struct{}),
	}
	var err error
	if n.cache, err = openCache(n.cni); err != nil {
		return nil, err
	}
	if opts.Config != nil {
		var list *libcni.NetworkConfigList
		if list, err = parseList(opts.Config); err != nil {
			return nil, fmt.Errorf("built-in network configuration: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		n.conf = &config{name: "built-in configuration", list: list}
		return n, nil
	}
	w, err := watch(opts.ConfDir, opts.Log, n.reload)
	if err != nil {
		opts.Log.Warn("network configuration is not watched, but read again for each use", "dir", opts.ConfDir, "error", err)
	}
	n.watch = w
	n.reload()
	return n, nil
}

// Close stops watching. Pods stay connected.
func (n *Network) Close() error {
	if n.watch == nil {
		return nil
	}
	return n.watch.close()
}

// Status is nil when pods can be connected now; otherwise it says why not.
func (n *Network) Status(ctx context.Context) error {
	conf, err := n.current()
	if err != nil {
		return err
	}
	if err := n.findPlugins(conf); err != nil {
		return err
	}
	if err := n.cni.GetStatusNetworkList(ctx, conf.list); err != nil {
		return fmt.Errorf("%s: network %q is not ready: %w: %w", conf.name, conf.list.Name, err, errdefs.ErrUnavailable)
	}
	return nil
}

// findPlugins says which plugin of a configuration is not there.
func (n *Network) findPlugins(conf *config) error {
	for _, p := range conf.list.Plugins {
		if _, err := n.opts.Exec.FindInPath(p.Network.Type, n.opts.BinDirs); err != nil {
			return fmt.Errorf("%s: %w: %w", conf.name, err, errdefs.ErrUnavailable)
		}
	}
	return nil
}

// current is the configuration for new pods.
func (n *Network) current() (*config, error) {
	if n.watch == nil && n.opts.Config == nil {
		n.reload()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.conf, n.reason
}

// reload reads the directory again, and logs what it found when that is news.
func (n *Network) reload() {
	n.reloading.Lock()
	defer n.reloading.Unlock()
	conf, invalid := load(n.opts.ConfDir)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conf, n.reason = conf, nil
	outcome := errors.Join(invalid...)
	if conf == nil {
		n.reason = noConfig(n.opts.ConfDir, invalid)
		outcome = n.reason
	}
	told := fmt.Sprint(conf.describe(), outcome)
	if told == n.told {
		return
	}
	n.told = told
	for _, err := range invalid {
		n.opts.Log.Warn("network configuration passed over", "error", err)
	}
	if conf == nil {
		n.opts.Log.Warn("network is not ready", "reason", n.reason)
		return
	}
	n.opts.Log.Info("network configuration", "file", conf.name, "network", conf.list.Name)
}

func (n *Network) setLive(key pod.Key, live bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if live {
		n.live[key] = struct{}{}
	} else {
		delete(n.live, key)
	}
}

func (n *Network) liveKeys() map[pod.Key]struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.live)
}
