// Package daemon assembles the server: it is the one place where every part is made and tied to the
// others. Parts are made in the order in which they need each other and closed in reverse; none of
// the closing touches a container.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"gantry/internal/config"
	"gantry/internal/killpoint"
	"gantry/internal/observe"
)

// Times of a start and of an end.
const (
	keeperTimeout = 30 * time.Second // until the keeper answers
	callsTimeout  = 10 * time.Second // for calls under way when the server is asked to end
	closeTimeout  = 10 * time.Second // for what goes on behind the calls
)

// server is what was made so far.
type server struct {
	opts    *config.Options // those of the start; see reloader for those in force
	log     *slog.Logger
	level   *slog.LevelVar
	load    Load
	hangups <-chan os.Signal

	registry prometheus.Registerer
	gatherer prometheus.Gatherer // of the registry
	traces   *observe.Traces     // nil: nobody wants them
	points   *killpoint.Points   // nil unless a fault test has asked for them
	closers  []closer

	notifySocket string // systemd's; "" without it
}

type closer struct {
	what  string
	close func(context.Context) error
}

// Load reads the options anew, as the start did.
type Load func() (*config.Options, error)

// Run serves until ctx ends, which is no error. The server has let go of everything when it returns.
// SIGHUP makes it load its options anew.
func Run(ctx context.Context, load Load, logTo io.Writer) error {
	o, err := load()
	if err != nil {
		return err
	}
	hangups := make(chan os.Signal, 1) // from now on: one that comes early must not end the process
	signal.Notify(hangups, unix.SIGHUP)
	defer signal.Stop(hangups)
	first, err := observe.ParseLevel(o.Log.Level)
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	level.Set(first)
	log, err := observe.NewLogger(logTo, observe.Format(o.Log.Format), level)
	if err != nil {
		return err
	}
	observe.Adopt(log)
	socket, err := takeNotifySocket()
	if err != nil {
		return err
	}
	reg := observe.NewRegistry()
	s := &server{
		opts: o, log: log, level: level, load: load, hangups: hangups, registry: reg, gatherer: reg,
		points: killpoint.FromEnv("server"), notifySocket: socket,
	}
	if s.points.Active() {
		log.Warn("the server will end at the points that fault tests name", "environment", killpoint.Env)
	}
	log.Info("gantry starts", "version", config.Version, "root", o.Root, "state", o.State, "engine", o.Engine,
		"runtime", o.Runtime.Default, "network", o.Network.Mode)
	err = s.run(ctx)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // asked to end before it had begun
	}
	err = errors.Join(err, s.close()) //nolint:contextcheck // ctx has ended
	if err == nil {
		log.Info("gantry ends")
	}
	return err
}

func (s *server) run(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := s.claim(); err != nil {
		return err
	}
	if err := s.openTraces(ctx); err != nil {
		return err
	}
	parts, err := s.assemble(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := parts.manager.Recover(ctx); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	s.log.Info("recovered", "pods", len(parts.manager.Pods(ctx)), "containers", len(parts.manager.Containers(ctx)),
		"took", time.Since(began).Round(time.Millisecond))
	parts.plugins.start(ctx, s, parts.manager)
	return s.serve(ctx, parts)
}

func (s *server) openTraces(ctx context.Context) error {
	traces, err := observe.NewTraces(ctx, s.log, config.Version)
	if err != nil || traces == nil {
		return err
	}
	s.traces = traces
	s.onClose("traces", traces.Close)
	return nil
}

// traceStep is what makes spans of steps; nil when nobody wants them.
func (s *server) traceStep() func(context.Context, string) (context.Context, func(error)) {
	if s.traces == nil {
		return nil
	}
	return s.traces.Step
}

// claim takes the server's directories, so that no second server works in them.
func (s *server) claim() error {
	for _, dir := range []string{s.opts.Root, s.opts.State, filepath.Dir(s.opts.SocketPath())} {
		if err := makeDir(dir); err != nil {
			return err
		}
	}
	lock, err := lockState(s.opts.State, s.log)
	if err != nil {
		return err
	}
	s.onClose("state directory", func(context.Context) error { return lock.Close() })
	return nil
}

func (s *server) onClose(what string, f func(context.Context) error) {
	s.closers = append(s.closers, closer{what, f})
}

// close closes every part, the last one made first; a part that fails or hangs keeps no other.
func (s *server) close() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		if err := s.closers[i].bounded(); err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", s.closers[i].what, err))
		}
	}
	return errors.Join(errs...)
}

// bounded leaves a part behind that does not heed its time.
func (c closer) bounded() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- c.close(ctx) }()
	t := time.NewTimer(closeTimeout * 3 / 2) // for one that heeds it to say what hangs
	defer t.Stop()
	select {
	case err := <-closed:
		return err
	case <-t.C:
		return errors.New("it hangs")
	}
}
