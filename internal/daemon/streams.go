package daemon

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gantry/internal/cri"
	"gantry/internal/lifecycle"
	"gantry/internal/pod"
	"gantry/internal/streaming"
)

// listenStreams makes the server of exec, attach and port-forward; the caller serves it.
func (s *server) listenStreams(m *lifecycle.Manager) (*streaming.Server, error) {
	conf := s.opts.Streaming
	o := streaming.Options{Listen: conf.Listen, Log: s.log.With("component", "streaming")}
	if conf.TLSCert != "" {
		var err error
		if o.TLS, err = streaming.Certificate(conf.TLSCert, conf.TLSKey); err != nil {
			return nil, err
		}
	}
	streams, err := streaming.New(m, o)
	if err != nil {
		return nil, err
	}
	s.onClose("streams", streams.Close)
	return streams, nil
}

// measuredStreams counts the output that ExecSync cut.
type measuredStreams struct {
	cri.Streams
	discarded prometheus.Counter
}

func newMeasuredStreams(streams cri.Streams, reg prometheus.Registerer) (*measuredStreams, error) {
	m := &measuredStreams{streams, prometheus.NewCounter(prometheus.CounterOpts{
		Name: "gantry_exec_sync_discarded_bytes_total",
		Help: "Output of ExecSync beyond what its answer may hold.",
	})}
	if err := reg.Register(m.discarded); err != nil {
		return nil, fmt.Errorf("register metrics of streams: %w", err)
	}
	return m, nil
}

func (m *measuredStreams) ExecSync(ctx context.Context, id string, args []string, timeout time.Duration) (*pod.ExecResult, error) {
	r, err := m.Streams.ExecSync(ctx, id, args, timeout)
	if r != nil {
		m.discarded.Add(float64(r.Discarded))
	}
	return r, err
}
