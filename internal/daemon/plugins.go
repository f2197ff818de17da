package daemon

import (
	"context"
	"fmt"
	"time"

	"gantry/internal/config"
	"gantry/internal/lifecycle"
	"gantry/internal/nri"
	"gantry/internal/observe"
)

// plugins are what NRI plugins have of the server. Its zero value is a server without them.
type plugins struct {
	nri    *nri.NRI // nil: switched off
	socket string
	broken error // why there are none
}

// openPlugins returns what lifecycle tells, nil where nobody is to be told. Plugins come with start.
func (s *server) openPlugins() (*plugins, lifecycle.Plugins, error) {
	o := s.opts.NRI
	if !o.Enabled {
		return &plugins{}, nil, nil
	}
	calls, err := observe.NewPluginCalls(s.registry)
	if err != nil {
		return nil, nil, err
	}
	n, err := nri.New(nri.Options{
		Version: config.Version, Socket: o.Socket, PluginDir: o.PluginDir, ConfigDir: o.ConfigDir,
		RegistrationTimeout: time.Duration(o.RegistrationTimeout), RequestTimeout: time.Duration(o.RequestTimeout),
		Log: s.log.With("component", "nri"), OnCall: calls.Called,
	})
	if err != nil {
		return nil, nil, err
	}
	s.onClose("NRI plugins", func(context.Context) error { n.Close(); return nil })
	return &plugins{nri: n, socket: o.Socket}, n, observe.WatchPlugins(n.Plugins, s.registry)
}

// start lets plugins come. A node whose plugins cannot come still runs pods, and says so.
func (p *plugins) start(ctx context.Context, s *server, m *lifecycle.Manager) {
	if p.nri == nil {
		return
	}
	if p.broken = p.nri.Start(ctx, m); p.broken != nil {
		s.log.Error("there are no NRI plugins", "error", p.broken)
	}
}

// list returns the plugins that there are and were.
func (p *plugins) list() []nri.Plugin {
	if p.nri == nil {
		return nil
	}
	return p.nri.Plugins()
}

// status adds what Status says of plugins.
func (p *plugins) status(verbose map[string]string) {
	switch {
	case p.nri == nil:
		verbose["nri"] = "off"
		return
	case p.broken != nil:
		verbose["nri"] = p.broken.Error()
		return
	}
	verbose["nri"] = "listens at " + p.socket
	for _, one := range p.list() {
		name := "nri." + one.Name
		switch {
		case one.Lost.IsZero():
			verbose[name] = fmt.Sprintf("connected since %s, %d calls, %d failed", one.Since.Format(time.RFC3339), one.Calls, one.Failures)
		case verbose[name] == "": // it may have come again
			verbose[name] = fmt.Sprintf("gone since %s: %s", one.Lost.Format(time.RFC3339), one.Reason)
		}
	}
}
