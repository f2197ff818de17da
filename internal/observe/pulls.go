package observe

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gantry/internal/admin"
)

// pulls shows the pulls under way. A pull that has ended has no metrics: labels do not pile up.
type pulls struct {
	list    func() []admin.Pull
	done    *prometheus.Desc
	total   *prometheus.Desc
	running *prometheus.Desc
}

// WatchPulls registers metrics of the pulls that list returns.
func WatchPulls(list func() []admin.Pull, reg prometheus.Registerer) error {
	layer := []string{"image", "layer"}
	return reg.Register(&pulls{
		list:    list,
		done:    prometheus.NewDesc("gantry_image_pull_layer_bytes", "Compressed bytes of a layer that have come, of pulls under way.", layer, nil),
		total:   prometheus.NewDesc("gantry_image_pull_layer_size_bytes", "Compressed bytes that the layer has.", layer, nil),
		running: prometheus.NewDesc("gantry_image_pull_running_seconds", "How long the pull has been under way.", []string{"image"}, nil),
	})
}

func (p *pulls) Describe(ch chan<- *prometheus.Desc) {
	ch <- p.done
	ch <- p.total
	ch <- p.running
}

func (p *pulls) Collect(ch chan<- prometheus.Metric) {
	type label struct{ image, layer string }
	seen := make(map[label]bool) // two calls may pull one image: the store joins them
	for _, pull := range p.list() {
		if one := (label{image: pull.Ref}); !seen[one] {
			seen[one] = true
			ch <- prometheus.MustNewConstMetric(p.running, prometheus.GaugeValue, time.Since(pull.Started).Seconds(), pull.Ref)
		}
		for _, l := range pull.Layers {
			if one := (label{pull.Ref, l.Digest}); !seen[one] {
				seen[one] = true
				ch <- prometheus.MustNewConstMetric(p.done, prometheus.GaugeValue, float64(l.Done), pull.Ref, l.Digest)
				ch <- prometheus.MustNewConstMetric(p.total, prometheus.GaugeValue, float64(l.Total), pull.Ref, l.Digest)
			}
		}
	}
}
