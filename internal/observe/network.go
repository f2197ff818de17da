package observe

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gantry/internal/cni"
	"gantry/internal/pod"
)

// Connector connects pods, as package lifecycle wants it.
type Connector interface {
	Attach(ctx context.Context, a *cni.Attachment) (*pod.Network, error)
	Detach(ctx context.Context, a *cni.Attachment) error
	Status(ctx context.Context) error
	GC(ctx context.Context, keep []*cni.Attachment) error
}

// Network measures how long pods wait for a Connector.
type Network struct {
	Connector
	duration *prometheus.HistogramVec
}

// NewNetwork registers the metrics of a network and returns it measured.
func NewNetwork(c Connector, reg prometheus.Registerer) (*Network, error) {
	n := &Network{c, prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "gantry_network_operation_duration_seconds",
		Help:    "How long it took to attach pods to the network and to detach them, all plugins together.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"operation", "result"})}
	return n, reg.Register(n.duration)
}

// Attach is the Connector's, measured.
func (n *Network) Attach(ctx context.Context, a *cni.Attachment) (*pod.Network, error) {
	began := time.Now()
	network, err := n.Connector.Attach(ctx, a)
	n.observe("attach", began, err)
	return network, err
}

// Detach is the Connector's, measured.
func (n *Network) Detach(ctx context.Context, a *cni.Attachment) error {
	began := time.Now()
	err := n.Connector.Detach(ctx, a)
	n.observe("detach", began, err)
	return err
}

func (n *Network) observe(operation string, began time.Time, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	n.duration.WithLabelValues(operation, result).Observe(time.Since(began).Seconds())
}
