// Package lifecycle is all pod policy, written once for every engine: the list of steps that makes
// and unmakes a pod, joined retries, stopping with grace, recovery after a crash and the one
// namespace over all image stores. Engines have only primitives; the CRI is only a form of calling.
package lifecycle

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/cni"
	"gantry/internal/engine"
	"gantry/internal/event"
	"gantry/internal/keylock"
	"gantry/internal/pod"
	"gantry/internal/store"
)

// Network connects pods. Repeating Attach of what is attached, and Detach of what never was, succeed.
type Network interface {
	Attach(ctx context.Context, a *cni.Attachment) (*pod.Network, error)
	Detach(ctx context.Context, a *cni.Attachment) error
	Status(ctx context.Context) error
	// GC gives back whatever was attached under a key that keep does not hold.
	GC(ctx context.Context, keep []*cni.Attachment) error
}

// LogReopener opens a container's log anew after it was renamed away.
type LogReopener interface {
	ReopenLog(ctx context.Context, key string) error
}

// Options are what a Manager works with.
type Options struct {
	Engines map[string]engine.Engine
	Images  map[string]engine.Images // by engine; engines may share a store
	// Handlers maps a RuntimeClass handler to an engine; "" is the default and must be there.
	Handlers map[string]string
	Features map[string]pod.HandlerFeatures // by handler
	Network  Network
	Journal  *store.Store
	Logs     LogReopener
	// Plugins are told what happens; nil when there are none.
	Plugins Plugins
	// Meter reads what containers use, for engines that do not know better; nil when nobody can.
	Meter    Meter
	StateDir string // holds pods/<key>, the files of each pod; a reboot may forget it
	// CheckpointDir holds what is to be restored, unpacked, until it is; on a disk, because it is as large
	// as the memory of the processes was. "" is checkpoints in StateDir.
	CheckpointDir string
	// LogBounds are those of every container's log. A pod's annotations may make them narrower.
	LogBounds pod.LogBounds
	// ResolvConf and Hosts are the node's own; empty is the usual path below /etc.
	ResolvConf    string
	Hosts         string
	SystemdCgroup bool
	// TakeOver makes pods that an earlier runtime has left on an engine known, as pods that are not ready.
	TakeOver bool
	Events   event.Options
	Log      *slog.Logger // nil: slog.Default()
	Times    Times
	// Trace, if set, is told of every step that begins; what it returns is called at the step's end.
	Trace func(ctx context.Context, step string) (context.Context, func(error))
	// Hook, if set, is called at every Point that is reached. Its error fails the operation there;
	// a hook that does not return is a crash there.
	Hook func(Point) error
}

// Meter reads what containers and pods use, as package stats does.
type Meter interface {
	Container(c *pod.Container) (*pod.Stats, error)
	ContainerMetrics(c *pod.Container) (*pod.Metrics, error)
	Cgroup(path string) (*pod.Stats, error)
	CgroupMetrics(path string) (*pod.Metrics, error)
	// Network reads the interfaces of a network namespace; pids are processes that may be in it.
	Network(netns string, pids []int) (*pod.NetworkUsage, error)
	// Forget is told of cgroups that are not read again.
	Forget(cgroup string)
}

// Times bound what can hang. Zero is the default.
type Times struct {
	Linger  time.Duration // how long an attempt goes on that no caller waits for: two minutes
	Undo    time.Duration // one step of undoing: 90 seconds
	Kill    time.Duration // from SIGKILL until the exit: 10 seconds
	Status  time.Duration // one check for Status: 5 seconds
	Recover time.Duration // what Recover waits for; the rest goes on behind it: 30 seconds
}

func (t Times) withDefaults() Times {
	for d, def := range map[*time.Duration]time.Duration{
		&t.Linger: 2 * time.Minute, &t.Undo: 90 * time.Second, &t.Kill: 10 * time.Second,
		&t.Status: 5 * time.Second, &t.Recover: 30 * time.Second,
	} {
		if *d <= 0 {
			*d = def
		}
	}
	return t
}

// Manager runs pods. Its methods may be called from any goroutine; calls on different pods never
// wait for each other.
//
// Lock order: the pod's key lock, then a container's, then an entry's mu, then the event log's, then
// index.mu. Only key locks are held across calls of an engine or the network, and only a pod's across
// calls of plugins.
type Manager struct {
	opts    Options
	times   Times
	log     *slog.Logger
	journal *store.Store

	handlers atomic.Pointer[handlers]

	locks    keylock.Locks[pod.Key] // by sandbox; and by container, for its start, resizes and removal
	restores keylock.Locks[string]  // by the pod's name, taken before locks
	index    *index
	events   *event.Log
	foreign  map[pod.Key]*pod.Sandbox // records whose engine is not configured; set by Recover
	attempts *flights[string]         // RunPod, CreateContainer, image copies: the id
	actions  *flights[struct{}]       // what has no result

	pulling sync.Map // *activePull → nil
	copies  sync.Map // copied → id of the copy

	ctx    context.Context // of the work behind the calls; ended by Close
	cancel context.CancelFunc
	work   sync.WaitGroup

	retryMu  sync.Mutex
	retrying map[string]*retried // guarded by retryMu
}

// New returns a Manager that knows of no pod yet: Recover comes before the first call.
func New(opts Options) (*Manager, error) {
	if opts.Network == nil || opts.Journal == nil || opts.StateDir == "" {
		return nil, fmt.Errorf("a network, a journal and a state directory are needed: %w", errdefs.ErrInvalidArgument)
	}
	if opts.ResolvConf == "" {
		opts.ResolvConf = "/etc/resolv.conf"
	}
	if opts.Hosts == "" {
		opts.Hosts = "/etc/hosts"
	}
	if opts.Plugins == nil {
		opts.Plugins = nobody{}
	}
	if opts.CheckpointDir == "" {
		opts.CheckpointDir = filepath.Join(opts.StateDir, "checkpoints")
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	m := &Manager{
		opts: opts, times: opts.Times.withDefaults(), log: opts.Log, journal: opts.Journal,
		index: newIndex(), events: event.New(opts.Events), foreign: make(map[pod.Key]*pod.Sandbox), retrying: make(map[string]*retried),
	}
	if err := m.SetHandlers(opts.Handlers, opts.Features); err != nil {
		return nil, err
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.attempts = newFlights[string](m.times.Linger)
	m.actions = newFlights[struct{}](m.times.Linger)
	return m, nil
}

// Close ends the work behind the calls and waits for it until ctx ends. It touches no container:
// what was being made is undone as far as there is time, and by the next Recover otherwise.
func (m *Manager) Close(ctx context.Context) error {
	m.attempts.close()
	m.actions.close()
	done := make(chan struct{})
	go func() {
		m.attempts.wait()
		m.actions.wait()
		m.cancel()
		m.work.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		m.cancel()
		return fmt.Errorf("wait for unfinished work: %w", ctx.Err())
	}
}

// retried is work that is tried again.
type retried struct {
	do    func(context.Context) error // guarded by Manager.retryMu
	again bool                        // it was asked for since do was last begun; guarded by Manager.retryMu
}

// retry does what failed again and again, with growing pauses, until it succeeds or Close. Name
// tells one work from another: it is done once at a time, and once more where it is asked for meanwhile, as it
// was asked for last.
func (m *Manager) retry(name string, do func(context.Context) error) {
	m.retryMu.Lock()
	defer m.retryMu.Unlock()
	if r := m.retrying[name]; r != nil {
		r.do, r.again = do, true
		return
	}
	r := &retried{do: do}
	m.retrying[name] = r
	m.work.Go(func() {
		for pause := time.Second; m.pause(pause); pause = min(2*pause, time.Minute) {
			err := m.tryAgain(r)
			if err == nil {
				m.log.Info("done after all", "work", name)
				if m.retryEnds(name, r) {
					return
				}
				continue
			}
			m.log.Warn("not done, trying again", "work", name, "error", err)
		}
	})
}

func (m *Manager) tryAgain(r *retried) error {
	m.retryMu.Lock()
	do := r.do
	r.again = false
	m.retryMu.Unlock()
	return do(m.ctx)
}

// retryEnds says whether work that was done was not asked for since.
func (m *Manager) retryEnds(name string, r *retried) bool {
	m.retryMu.Lock()
	defer m.retryMu.Unlock()
	if r.again {
		return false
	}
	delete(m.retrying, name)
	return true
}

// pause waits and says whether to go on.
func (m *Manager) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-m.ctx.Done():
		return false
	}
}
