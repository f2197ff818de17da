package daemon

import (
	"gantry/internal/lifecycle"
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
