// Package bridge is the builtin network: the result of CNI's bridge, host-local and portmap plugins
// without their processes. It stands behind libcni's Exec interface as a plugin type of its own, so
// that a configuration list can name it and chain other plugins after it.
//
// A pod gets a veth pair whose host end is a port of the bridge, an address of each subnet, default
// routes, and its host ports as elements of nftables maps, so that the cost of a pod does not grow
// with their number. Everything is found again after a crash: the host end is named from the
// container id, leases and records are small files, and the nftables table is built anew from them.
//
// Host ports answer on 127.0.0.1 too, because the bridge (and nothing else) may route loopback
// addresses; packets that claim such an address from outside are dropped (CVE-2020-8558). ::1 cannot
// be translated by the kernel: a host port there is refused.
package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"

	"gantry/internal/keylock"
	"gantry/internal/sysctl"
)

// Type is the plugin type that a network configuration names.
const Type = "gantry-bridge"

// Options of a Bridge.
type Options struct {
	// StateDir holds leases and records: what a reboot may forget. Servers with different
	// directories share nothing and need bridges and subnets of their own.
	StateDir string
	// Timeout bounds a call that hangs in the kernel, and cannot be killed; 0: ten seconds.
	Timeout time.Duration
	Log     *slog.Logger // nil: slog.Default()
	// Hook, if set, is called after every part of connecting and disconnecting a pod, with its name.
	// One that does not return is a crash there.
	Hook func(point string)
}

// Bridge is the plugin. Its calls may come from any goroutine; those for different pods run side by side.
type Bridge struct {
	opts  Options
	boot  string
	node  *sysctl.Tree                // of the node's namespaces
	locks keylock.Locks[attachmentID] // Lock order: locks before Bridge.mu before segment.mu.
	mu    sync.Mutex
	segs  map[string]*segment // guarded by mu; by bridge name
	hook  func(verb string)   // of tests: called when a call has its lock; nil otherwise

	links   linkWatch
	leaving sync.WaitGroup // links that are being removed behind the calls
	closed  chan struct{}  // no more is tried again
	once    sync.Once
}

// attachmentID is what CNI calls an attachment, within one bridge.
type attachmentID struct {
	Bridge, Container, IfName string
}

// New returns the plugin. It touches nothing but StateDir until it is called.
func New(opts Options) (*Bridge, error) {
	if opts.Timeout == 0 {
		opts.Timeout = 10 * time.Second
	}
	if opts.Hook == nil {
		opts.Hook = func(string) {}
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	if err := os.MkdirAll(opts.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("builtin network: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("builtin network: %w", err)
	}
	node, err := sysctl.Open()
	if err != nil {
		return nil, fmt.Errorf("builtin network: %w", err)
	}
	return &Bridge{
		opts: opts, boot: strings.TrimSpace(string(boot)), node: node,
		segs: make(map[string]*segment), closed: make(chan struct{}),
	}, nil
}

// Exec returns an Exec that answers for the plugin type "gantry-bridge" in process and leaves every
// other plugin to next.
func (b *Bridge) Exec(next invoke.Exec) invoke.Exec { return &plugin{Exec: next, bridge: b} }

// segment returns the state of the bridge that a configuration names.
func (b *Bridge) segment(name string) (*segment, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.segs[name]; s != nil {
		return s, nil
	}
	s := &segment{
		name: name, owner: b.opts.StateDir, boot: b.boot, node: b.node, log: b.opts.Log.With("bridge", name), hook: b.opts.Hook,
		leases: leases{dir: filepath.Join(b.opts.StateDir, name, "leases"), boot: b.boot},
		dir:    filepath.Join(b.opts.StateDir, name, "attachments"),
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	b.segs[name] = s
	for _, id := range s.leavers() { // of a process that ended too early
		b.leaving.Go(func() {
			if unlock, err := b.locks.Lock(context.Background(), id); err == nil {
				b.finish(s, id, unlock)
			}
		})
	}
	return s, nil
}
