package daemon_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/config"
	"gantry/internal/daemon"
	"gantry/internal/ociruntime"
	"gantry/internal/pod"
)

// running is a manager and an engine that keep what a reload sets.
type running struct {
	handlers map[string]string
	runtimes map[string]ociruntime.Runtime
	standard string
	features func() map[string]pod.HandlerFeatures // nil: none
}

func (r *running) SetHandlers(engines map[string]string, _ map[string]pod.HandlerFeatures) error {
	r.handlers = maps.Clone(engines)
	return nil
}

func (r *running) Status(context.Context) (*pod.NodeStatus, error) {
	return &pod.NodeStatus{Verbose: map[string]string{}}, nil
}

func (r *running) SetRuntimes(runtimes map[string]ociruntime.Runtime, standard string) error {
	if _, ok := runtimes[standard]; !ok {
		return errdefs.ErrInvalidArgument
	}
	r.runtimes, r.standard = maps.Clone(runtimes), standard
	return nil
}

func (r *running) Features(context.Context) map[string]pod.HandlerFeatures {
	if r.features == nil {
		return nil
	}
	return r.features()
}

// The node's status is told while a runtime that was asked for its features hangs.
func TestStatusDuringAReload(t *testing.T) {
	start := options(t)
	start.Runtime.Paths, start.Runtime.Default = map[string]string{"crun": "/usr/bin/crun"}, "crun"
	asked, answer, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	node := &running{features: func() map[string]pod.HandlerFeatures {
		close(asked)
		<-answer
		return nil
	}}
	r := daemon.NewReloader(node, node, start, func() (*config.Options, error) { return start, nil }, new(slog.LevelVar))
	go func() {
		defer close(ended)
		r.Reload(t.Context())
	}()
	<-asked
	if told, err := r.Told(t.Context()); told != "in force" || err != nil {
		t.Errorf("%q, %v", told, err)
	}
	close(answer)
	<-ended
}

func TestReload(t *testing.T) {
	start := options(t)
	next := *start
	var fail error
	var level slog.LevelVar
	node := &running{}
	r := daemon.NewReloader(node, node, start, func() (*config.Options, error) { return &next, fail }, &level)

	next.Log.Level = "debug"
	next.Runtime.Paths = map[string]string{"crun": "/usr/bin/crun", "kata": "/opt/kata"}
	r.Reload(t.Context())
	if level.Level() != slog.LevelDebug || node.runtimes["kata"].Path != "/opt/kata" || node.handlers["kata"] == "" {
		t.Errorf("level %v, runtimes %v, handlers %v", level.Level(), node.runtimes, node.handlers)
	}
	if told, err := r.Told(t.Context()); told != "in force" || err != nil {
		t.Errorf("after a reload: %q, %v", told, err)
	}

	applied := next
	next.Log.Level, next.Root = "error", "/elsewhere"
	fail = errors.New("config.toml:3: unknown key")
	r.Reload(t.Context())
	if level.Level() != slog.LevelDebug {
		t.Errorf("a broken file changed the level to %v", level.Level())
	}
	if told, err := r.Told(t.Context()); !strings.Contains(told, "config.toml:3") || err == nil {
		t.Errorf("after a broken file: %q, %v", told, err)
	}

	fail, next = nil, applied
	next.Log.Level, next.Runtime.Default = "error", "none"
	r.Reload(t.Context())
	if _, err := r.Told(t.Context()); level.Level() != slog.LevelDebug || node.standard != "crun" || err == nil {
		t.Errorf("half of a reload: level %v, default %s, %v", level.Level(), node.standard, err)
	}

	next = applied
	next.Root = "/elsewhere"
	r.Reload(t.Context())
	if told, err := r.Told(t.Context()); told != "a restart is needed for root" || err != nil {
		t.Errorf("an option of the start: %q, %v", told, err)
	}
}
