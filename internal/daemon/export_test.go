package daemon

import (
	"context"
	"errors"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"gantry/internal/config"
	"gantry/internal/observe"
)

// What the tests look at from inside.
var (
	LockState         = lockState
	RemoveStaleSocket = removeStaleSocket
)

// LockName is the lock's file.
const LockName = lockName

// Reloader is a reloader over both, with the options of the start.
type Reloader struct{ r reloader }

// NewReloader returns one whose log level is level.
func NewReloader(m handlerSetter, e runtimeSetter, start *config.Options, load Load, level *slog.LevelVar) *Reloader {
	return &Reloader{reloader{manager: m, plugins: &plugins{}, engine: e, load: load, level: level, log: slog.New(slog.DiscardHandler), start: start, last: start}}
}

func (r *Reloader) Reload(ctx context.Context) { r.r.reload(ctx) }

// Told is what Status says of the configuration.
func (r *Reloader) Told(ctx context.Context) (verbose string, broken error) {
	st, err := r.r.Status(ctx)
	if err != nil {
		return "", err
	}
	return st.Verbose["configuration"], st.Configuration
}

// RegisterAll registers every metric of a server, over nothing.
func RegisterAll(reg prometheus.Registerer) error {
	_, rpcs := observe.NewRPCs(slog.New(slog.DiscardHandler), reg)
	_, network := observe.NewNetwork(nil, reg)
	_, streams := newMeasuredStreams(nil, reg)
	_, calls := observe.NewPluginCalls(reg)
	return errors.Join(rpcs, network, streams, calls, observe.WatchPulls(nil, reg), observe.WatchNode(nil, nil, reg), observe.WatchPlugins(nil, reg))
}
