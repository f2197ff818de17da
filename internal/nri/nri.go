// Package nri lets plugins of the Node Resource Interface see and change pods and containers. It holds
// the NRI adaptation library and converts between its protocol and pod nouns, so that it serves every
// engine; what an adjustment means to an engine is the engine's to say.
//
// A plugin that does not answer in time, or breaks its connection, is disconnected, and what it was
// asked for goes on without it, unless it has asked for another policy. Nothing that it does holds
// anything up for longer than the request timeout.
package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// Runtime is what plugins ask for.
type Runtime interface {
	// Everything returns all sandboxes and containers, with what is needed to describe each.
	Everything() ([]*pod.Sandbox, []*pod.ContainerEvent)
	// UpdateContainers changes resources and returns what failed. It must not wait for an event that
	// plugins are being told of.
	UpdateContainers(ctx context.Context, updates []pod.ContainerUpdate) (failed []pod.ContainerUpdate)
}

// Options say where plugins are.
type Options struct {
	Version string // of this server, as plugins are told
	Socket  string // where plugins connect
	// PluginDir holds plugins that are started with the server, named NN-name; ConfigDir what they are
	// told, in NN-name.conf or name.conf.
	PluginDir string
	ConfigDir string
	// RegistrationTimeout bounds a plugin's registration, RequestTimeout its answer to one event.
	RegistrationTimeout time.Duration
	RequestTimeout      time.Duration
	Log                 *slog.Logger // nil: slog.Default()
	// OnCall, if set, is told of every call of a plugin. It must not block.
	OnCall func(Call)
}

// Call is one call of a plugin.
type Call struct {
	Plugin string // "NN-name"
	Event  string // as NRI calls it
	Took   time.Duration
	Err    error
}

// NRI speaks with plugins. It serves as lifecycle's Plugins from the moment it is made; plugins come
// with Start.
type NRI struct {
	opts    Options
	log     *slog.Logger
	adapt   *adaptation.Adaptation
	roster  *roster
	told    told
	runtime Runtime // set by Start

	work   sync.WaitGroup // updates that plugins wanted when they joined
	ctx    context.Context
	cancel context.CancelFunc
}

// setLogger sets the library's logger, a variable without a lock, before anything reads it, and not again.
var setLogger sync.Once

// New returns an NRI without plugins. It sets the library's timeouts and logger, which a process has
// once: the logger is the first NRI's.
func New(o Options) (*NRI, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	n := &NRI{opts: o, log: o.Log, roster: newRoster(o.Log, o.OnCall), told: told{stage: make(map[pod.Key]stage)}}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	setLogger.Do(func() { nrilog.Set(logger{o.Log}) })
	adaptation.SetPluginRegistrationTimeout(o.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(o.RequestTimeout)
	var err error
	n.adapt, err = adaptation.New("gantry", o.Version, n.synchronize, n.update,
		adaptation.WithSocketPath(o.Socket),
		adaptation.WithPluginPath(o.PluginDir),
		adaptation.WithPluginConfigPath(o.ConfigDir),
		adaptation.WithMetrics(n.roster),
		adaptation.WithTTRPCOptions([]ttrpc.ClientOpts{n.roster.watch}, nil),
	)
	if err != nil {
		return nil, fmt.Errorf("NRI: %w", err)
	}
	return n, nil
}

// Start starts the plugins of the plugin directory and lets others connect. It waits for those that it
// starts, within the timeouts. The socket of another process that answers is left alone and is an error:
// plugins would be torn from it.
func (n *NRI) Start(ctx context.Context, runtime Runtime) error {
	n.runtime = runtime
	pods, containers := runtime.Everything()
	n.told.adopt(pods, containers)
	if answers(ctx, n.opts.Socket) {
		return fmt.Errorf("NRI: another process listens at %s: %w", n.opts.Socket, errdefs.ErrAlreadyExists)
	}
	if err := n.adapt.Start(); err != nil {
		return fmt.Errorf("NRI: %w", err)
	}
	return nil
}

// answers says whether somebody listens at a socket. To connect to one takes no time: it succeeds, or there is
// no room among those who wait to be accepted.
func answers(ctx context.Context, socket string) bool {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return errors.Is(err, unix.EAGAIN)
	}
	_ = conn.Close()
	return true
}

// Close disconnects all plugins and ends those that Start has started.
func (n *NRI) Close() {
	n.adapt.Stop()
	n.roster.close()
	n.cancel()
	n.work.Wait()
}

// Plugins returns the plugins that are connected, and those that were lost, the last ones.
func (n *NRI) Plugins() []Plugin { return n.roster.list() }

// synchronize shows a plugin that joins what there is. No event is under way meanwhile. What it wants
// changed waits until the events go on: those who tell them hold locks that a change may need.
func (n *NRI) synchronize(ctx context.Context, show adaptation.SyncCB) error {
	pods, containers := n.runtime.Everything()
	var shownPods []*api.PodSandbox
	for _, sb := range pods {
		if n.told.knows(sb.Spec.Key) {
			shownPods = append(shownPods, sandboxToAPI(sb))
		}
	}
	var shown []*api.Container
	for _, c := range containers {
		if n.told.knows(c.Container.Spec.Key) && c.Container.State != pod.ContainerExited {
			shown = append(shown, containerToAPI(c))
		}
	}
	wanted, err := show(ctx, shownPods, shown)
	if err != nil {
		return err
	}
	if updates := updatesFromAPI(wanted); len(updates) > 0 {
		n.work.Go(func() { n.runtime.UpdateContainers(n.ctx, updates) })
	}
	return nil
}

// update does what a plugin wants by itself.
func (n *NRI) update(ctx context.Context, wanted []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)() //nolint:contextcheck // ctx ends with n.ctx as well
	byID := make(map[string]*api.ContainerUpdate, len(wanted))
	for _, u := range wanted {
		byID[u.GetContainerId()] = u
	}
	var failed []*api.ContainerUpdate
	for _, u := range n.runtime.UpdateContainers(ctx, updatesFromAPI(wanted)) {
		failed = append(failed, byID[u.Container])
	}
	return failed, nil
}

// refused says whose refusal err is.
func (n *NRI) refused(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("NRI: %w", context.Cause(ctx))
	}
	who := "NRI"
	if name := n.roster.blame(err); name != "" {
		who = "NRI plugin " + name
	}
	return fmt.Errorf("%s: %w: %w", who, errors.New(said(err)), errdefs.ErrFailedPrecondition)
}
