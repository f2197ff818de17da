package daemon

import (
	"context"
	"log/slog"

	"gantry/internal/config"
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
	return &Reloader{reloader{manager: m, engine: e, load: load, level: level, log: slog.New(slog.DiscardHandler), start: start, last: start}}
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
