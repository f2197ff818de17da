package observe

import (
	"github.com/prometheus/client_golang/prometheus"

	"gantry/internal/nri"
)

// PluginCalls measures calls of NRI plugins.
type PluginCalls struct {
	took   *prometheus.HistogramVec
	failed *prometheus.CounterVec
}

// NewPluginCalls registers the metrics.
func NewPluginCalls(reg prometheus.Registerer) (*PluginCalls, error) {
	c := &PluginCalls{
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gantry_nri_call_duration_seconds", Help: "How long NRI plugins took to answer, by plugin and event.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
		}, []string{"plugin", "event"}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gantry_nri_call_failures_total", Help: "Calls that NRI plugins did not answer, or refused, by plugin and event.",
		}, []string{"plugin", "event"}),
	}
	for _, m := range []prometheus.Collector{c.took, c.failed} {
		if err := reg.Register(m); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Called notes a call.
func (c *PluginCalls) Called(call nri.Call) {
	c.took.WithLabelValues(call.Plugin, call.Event).Observe(call.Took.Seconds())
	if call.Err != nil {
		c.failed.WithLabelValues(call.Plugin, call.Event).Inc()
	}
}

// pluginStates shows who is connected, as of the scrape.
type pluginStates struct {
	list func() []nri.Plugin
	up   *prometheus.Desc
}

// WatchPlugins registers a metric of the NRI plugins that list returns.
func WatchPlugins(list func() []nri.Plugin, reg prometheus.Registerer) error {
	return reg.Register(&pluginStates{
		list: list,
		up:   prometheus.NewDesc("gantry_nri_plugin_up", "1 for an NRI plugin that is connected, 0 for one that was lost.", []string{"plugin"}, nil),
	})
}

func (p *pluginStates) Describe(ch chan<- *prometheus.Desc) { ch <- p.up }

func (p *pluginStates) Collect(ch chan<- prometheus.Metric) {
	up := make(map[string]float64)
	for _, one := range p.list() {
		if one.Lost.IsZero() {
			up[one.Name] = 1
		} else {
			up[one.Name] = max(up[one.Name], 0) // it may have come again
		}
	}
	for name, value := range up {
		ch <- prometheus.MustNewConstMetric(p.up, prometheus.GaugeValue, value, name)
	}
}
