// Package docker is the engine that runs pods on Docker Engine, through its HTTP API (1.40 and up:
// Docker 20.10 to today's). It is what dockershim was to the kubelet: a pause container holds the
// namespaces of a pod and the containers join them by its id; Docker's ids are the ids that the CRI
// shows, and names and labels are those that operators' scripts know.
//
// Docker keeps everything durable: the engine writes no file but pins of network namespaces. What is
// ours carries LabelKey, the key of the journal, and is found by it after a crash.
//
// A daemon that is gone or hangs is errdefs.ErrUnavailable within seconds: see daemon.
package docker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"gantry/internal/cgroup"
	"gantry/internal/engine"
	"gantry/internal/netns"
	"gantry/internal/pod"
)

// Options are what the engine is made of.
type Options struct {
	// Endpoint is where dockerd listens: "unix:///var/run/docker.sock" or "tcp://HOST:PORT". The daemon
	// must be of this machine: its containers' processes, cgroups and namespaces are used directly.
	Endpoint string
	TLS      TLS
	// PauseImage holds the namespaces of a pod. "" is the one that is built in, which is also used
	// when PauseImage can't be pulled.
	PauseImage string
	NetNSDir   string // where network namespaces are pinned, such as /var/run/netns
	Logs       Logs
	Log        *slog.Logger // nil: slog.Default()
	// Patience is how long the daemon may be silent before it counts as hung; zero is four seconds.
	Patience time.Duration
}

// TLS are PEM files for a tcp endpoint. Without them a tcp endpoint is spoken to in the clear.
type TLS struct {
	CA   string // signs the daemon's certificate
	Cert string // ours
	Key  string // of Cert
}

// Engine is the Docker engine.
type Engine struct {
	opts      Options
	log       *slog.Logger
	daemon    *daemon
	cgroups   *cgroup.FS
	objects   objects
	heirlooms heirlooms
	known     atomic.Pointer[node] // nil until the daemon was asked

	accounts accounts
	images   imageMemory
	oomWait  time.Duration

	pause struct {
		sync.Mutex        // held while the image is pulled or imported
		there      string // the image that was found, "" before; guarded by the mutex
	}
}

var (
	_ engine.Engine      = (*Engine)(nil)
	_ engine.LogReopener = (*Engine)(nil)
	_ engine.Heir        = (*Engine)(nil)
)

// undoTime bounds the undoing of a failed step, which the caller cannot cancel.
const undoTime = 30 * time.Second

// New returns the engine. It does not ask the daemon, which may start later: Status tells.
func New(o Options) (*Engine, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	cgroups, err := cgroup.Open(cgroup.DefaultRoot)
	if err != nil {
		return nil, err
	}
	d, err := connect(o)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		opts: o, log: o.Log, daemon: d, cgroups: cgroups, objects: objects{byKey: make(map[pod.Key]object)},
		heirlooms: heirlooms{all: make(map[pod.Key]bool)}, oomWait: oomWait, accounts: accounts{byImage: make(map[string]accountFiles)},
	}
	return e, netns.Share(o.NetNSDir)
}

// Dial returns a client of the daemon at o.Endpoint, for what stands beside the engine. It connects
// when it is first used.
func Dial(o Options) (*client.Client, error) {
	opts := []client.Opt{client.WithUserAgent("gantry")}
	if o.TLS != (TLS{}) {
		opts = append(opts, client.WithTLSClientConfig(o.TLS.CA, o.TLS.Cert, o.TLS.Key))
	}
	api, err := client.New(append(opts, client.WithHost(o.Endpoint))...)
	if err != nil {
		return nil, fmt.Errorf("docker endpoint %q: %w: %w", o.Endpoint, errdefs.ErrInvalidArgument, err)
	}
	return api, nil
}

// Close lets go of the connections. It touches no container.
func (e *Engine) Close(context.Context) error { return e.daemon.api.Close() }

// Status asks the daemon whether it is there, and, when it was not asked before, what it is.
func (e *Engine) Status(ctx context.Context) error {
	if err := e.daemon.check(ctx); err != nil {
		return err
	}
	_, err := e.node(ctx)
	return err
}

// SystemdCgroup says whether the daemon has systemd make cgroups.
func (e *Engine) SystemdCgroup(ctx context.Context) (bool, error) {
	n, err := e.node(ctx)
	return err == nil && n.driver == cgroup.Systemd, err
}

// Features is what pods on Docker may ask for beyond the base; nothing while the daemon does not answer.
func (e *Engine) Features(ctx context.Context) pod.HandlerFeatures {
	n, err := e.node(ctx)
	return pod.HandlerFeatures{RecursiveReadOnlyMounts: err == nil && n.recursiveReadOnly()}
}
