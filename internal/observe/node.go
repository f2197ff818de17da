package observe

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gantry/internal/pod"
)

// scrapeLimit bounds what a scrape asks of others.
const scrapeLimit = 2 * time.Second

// Views are the pods and containers that the CRI lists, from memory.
type Views interface {
	Pods(ctx context.Context) []*pod.Sandbox
	Containers(ctx context.Context) []*pod.Container
}

// Keeper is what of the keeper is watched.
type Keeper interface {
	// Ping returns an error when no keeper answers.
	Ping(ctx context.Context) error
	// Connections is how many connections were made so far: each after the first follows a worker that was replaced.
	Connections() uint64
}

// node shows what runs and the keeper's health, as of the scrape.
type node struct {
	views  Views
	keeper Keeper

	pods        *prometheus.Desc
	containers  *prometheus.Desc
	up          *prometheus.Desc
	connections *prometheus.Desc
	dropped     *prometheus.Desc
}

// WatchNode registers metrics of pods, containers and the keeper.
func WatchNode(v Views, k Keeper, reg prometheus.Registerer) error {
	return reg.Register(&node{
		views: v, keeper: k,
		pods:        prometheus.NewDesc("gantry_pods", "Pods by state, as the CRI lists them.", []string{"state"}, nil),
		containers:  prometheus.NewDesc("gantry_containers", "Containers by state, as the CRI lists them.", []string{"state"}, nil),
		up:          prometheus.NewDesc("gantry_keeper_up", "1 when the keeper answers, else 0.", nil, nil),
		connections: prometheus.NewDesc("gantry_keeper_connections_total", "Connections made to the keeper's worker; each after the first follows a worker that was replaced.", nil, nil),
		dropped: prometheus.NewDesc("gantry_container_log_dropped_bytes_total",
			"Output that is not in a container's log, because of its bounds or a full disk; only containers of which there is some.",
			[]string{"namespace", "pod", "container"}, nil),
	})
}

func (n *node) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{n.pods, n.containers, n.up, n.connections, n.dropped} {
		ch <- d
	}
}

func (n *node) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeLimit)
	defer cancel()
	pods := map[pod.SandboxState]int{pod.SandboxReady: 0, pod.SandboxNotReady: 0}
	names := make(map[string]pod.Metadata)
	for _, p := range n.views.Pods(ctx) {
		pods[p.State]++
		names[p.ID] = p.Spec.Metadata
	}
	for state, count := range pods {
		ch <- prometheus.MustNewConstMetric(n.pods, prometheus.GaugeValue, float64(count), string(state))
	}
	containers := map[pod.ContainerState]int{pod.ContainerCreated: 0, pod.ContainerRunning: 0, pod.ContainerExited: 0}
	dropped := make(map[[3]string]int64) // attempts of one container share its name
	for _, c := range n.views.Containers(ctx) {
		containers[c.State]++
		if md := names[c.SandboxID]; c.LogDropped > 0 {
			dropped[[3]string{md.Namespace, md.Name, c.Spec.Name}] += c.LogDropped
		}
	}
	for name, bytes := range dropped {
		ch <- prometheus.MustNewConstMetric(n.dropped, prometheus.CounterValue, float64(bytes), name[:]...)
	}
	for state, count := range containers {
		ch <- prometheus.MustNewConstMetric(n.containers, prometheus.GaugeValue, float64(count), string(state))
	}
	up := 1.
	if n.keeper.Ping(ctx) != nil {
		up = 0
	}
	ch <- prometheus.MustNewConstMetric(n.up, prometheus.GaugeValue, up)
	ch <- prometheus.MustNewConstMetric(n.connections, prometheus.CounterValue, float64(n.keeper.Connections()))
}
