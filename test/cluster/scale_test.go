package cluster_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry/test/cluster/kube"
)

// full is how many pods a node has to carry, by Kubernetes' own promise.
const full = 110

// idleTime is how long a full node is watched while nobody asks anything of it.
const idleTime = time.Minute

// TestScale fills a node by one scale-up of a Deployment, on gantry and on containerd, and tells what it took.
func TestScale(t *testing.T) {
	var rows []string
	for _, column := range []struct {
		name    string
		options kube.Options
	}{
		{"gantry, builtin network", kube.Options{Network: "builtin", Flags: quiet}},
		{"gantry, CNI", kube.Options{Network: "cni", Flags: quiet}},
		{"containerd, CNI", kube.Options{Network: "cni", Peer: "containerd"}},
	} {
		t.Run(column.name, func(t *testing.T) {
			f := scaleUp(newSuite(t, kube.Start(t, column.options)))
			rows = append(rows, "| "+column.name+" | "+strings.Join(f, " | ")+" |")
		})
	}
	t.Logf("\n| %s |\n%s", strings.Join(append([]string{"node"}, figures...), " | "), strings.Join(rows, "\n"))
}

// quiet is how a server of production logs.
var quiet = []string{"--log-level", "info"}

var figures = []string{
	"load before", "all Running, s", "RunPodSandbox, ms", "PLEG relist p50, p99 while starting, ms", "CPU of the runtime's server while starting, s",
	"of its helpers, s", "of the kubelet, s", "PLEG relist p50, p99 idle, ms", "CPU of the server idle, %", "of its helpers, %", "of the kubelet, %", "memory of the runtime, MiB", "all gone, s",
}

// programs are what a runtime consists of: its server first. What a program started and waited for is its own.
var programs = []struct{ server, helper string }{{"gantry", "gantry-keeper"}, {"containerd", "containerd-shim-runc-v2"}}

// sample is what the node had used at a moment.
type sample struct {
	at                      time.Time
	server, helper, kubelet time.Duration
	metrics                 string
}

func (s *suite) sample() sample {
	s.t.Helper()
	n := s.Nodes[0]
	x := sample{at: time.Now(), kubelet: n.CPU("kubelet")}
	for _, p := range programs {
		x.server += n.CPU(p.server)
		x.helper += n.CPU(p.helper)
	}
	data, err := s.Client.CoreV1().RESTClient().Get().Resource("nodes").Name(n.Name).SubResource("proxy", "metrics").DoRaw(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	x.metrics = string(data)
	return x
}

func scaleUp(s *suite) []string {
	n := s.Nodes[0]
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		s.t.Fatal(err)
	}
	s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: full}
spec:
  replicas: 1
  selector: {matchLabels: {app: full}}
  template:
    metadata: {labels: {app: full}}
    spec:
      terminationGracePeriodSeconds: 1
      automountServiceAccountToken: false
      containers: [{name: main, image: $BUSYBOX, command: [sleep, "100000"]}]
`)
	s.kubectl("rollout", "status", "deployment/full", "--timeout=170s") // the image is there
	before := s.sample()
	s.kubectl("scale", "deployment/full", "--replicas="+strconv.Itoa(full))
	s.running(full)
	started := s.sample()
	// What follows a start, such as the last status updates, is not idleness.
	s.eventually("the kubelet has told of every pod", func(context.Context) error {
		for _, p := range s.pods("app=full") {
			if !isReady(&p) {
				return fmt.Errorf("%s is not ready", p.Name)
			}
		}
		return nil
	})
	calm := s.sample()
	<-time.After(idleTime) // this is the stretch that is measured
	idle := s.sample()
	memory := n.Memory(programs[0].server, programs[0].helper, programs[1].server, programs[1].helper)
	ending := time.Now()
	s.kubectl("scale", "deployment/full", "--replicas=0")
	s.running(0)
	share := func(from, to time.Duration) string {
		return fmt.Sprintf("%.2f", 100*(to-from).Seconds()/idle.at.Sub(calm.at).Seconds())
	}
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()) }
	return []string{
		strings.Fields(string(load))[0], seconds(started.at.Sub(before.at)), mean(before, started, "run_podsandbox"), relist(before, started),
		seconds(started.server - before.server), seconds(started.helper - before.helper), seconds(started.kubelet - before.kubelet),
		relist(calm, idle), share(calm.server, idle.server), share(calm.helper, idle.helper), share(calm.kubelet, idle.kubelet),
		fmt.Sprintf("%.0f", float64(memory)/(1<<20)), seconds(time.Since(ending)),
	}
}

// running waits until that many pods of the Deployment run and there are no others.
func (s *suite) running(want int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Minute)
	defer cancel()
	list := metav1.ListOptions{LabelSelector: "app=full"}
	found, err := s.Client.CoreV1().Pods(s.namespace).List(ctx, list)
	if err != nil {
		s.t.Fatal(err)
	}
	up := map[string]bool{}
	for _, p := range found.Items {
		up[p.Name] = p.Status.Phase == corev1.PodRunning
	}
	list.ResourceVersion = found.ResourceVersion
	w, err := s.Client.CoreV1().Pods(s.namespace).Watch(ctx, list)
	if err != nil {
		s.t.Fatal(err)
	}
	defer w.Stop()
	for {
		if len(up) == want && !slices.Contains(slices.Collect(maps.Values(up)), false) {
			return
		}
		event, ok := <-w.ResultChan()
		if !ok {
			s.t.Fatalf("of %d pods %d are known: %v", want, len(up), ctx.Err())
		}
		p, isPod := event.Object.(*corev1.Pod)
		switch {
		case !isPod:
			s.t.Fatalf("watching pods: %v", event.Object)
		case event.Type == "DELETED":
			delete(up, p.Name)
		default:
			up[p.Name] = p.Status.Phase == corev1.PodRunning
		}
	}
}

// mean is what the kubelet's calls of a kind took on average between two samples, in milliseconds.
func mean(from, to sample, operation string) string {
	const name = "kubelet_runtime_operations_duration_seconds"
	labels := fmt.Sprintf("{operation_type=%q}", operation)
	sum := value(to.metrics, name+"_sum"+labels) - value(from.metrics, name+"_sum"+labels)
	count := value(to.metrics, name+"_count"+labels) - value(from.metrics, name+"_count"+labels)
	return fmt.Sprintf("%.0f", 1000*sum/max(count, 1))
}

func value(metrics, name string) float64 {
	for line := range strings.Lines(metrics) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, _ := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return v
		}
	}
	return 0
}

var bucket = regexp.MustCompile(`(?m)^kubelet_pleg_relist_duration_seconds_bucket\{le="([^"]+)"\} (\S+)$`)

// relist is how long the kubelet took to look at all pods between two samples: median and 99th percentile, in
// milliseconds. Inside a bucket of its histogram all durations are taken as equally likely.
func relist(from, to sample) string {
	old := map[string]float64{}
	for _, m := range bucket.FindAllStringSubmatch(from.metrics, -1) {
		old[m[1]], _ = strconv.ParseFloat(m[2], 64)
	}
	var bounds, counts []float64
	for _, m := range bucket.FindAllStringSubmatch(to.metrics, -1) {
		bound, _ := strconv.ParseFloat(m[1], 64) // "+Inf" is one
		count, _ := strconv.ParseFloat(m[2], 64)
		bounds, counts = append(bounds, bound), append(counts, count-old[m[1]])
	}
	return fmt.Sprintf("%.1f, %.1f", 1000*quantile(0.5, bounds, counts), 1000*quantile(0.99, bounds, counts))
}

// quantile reads a cumulative histogram.
func quantile(q float64, bounds, counts []float64) float64 {
	if len(counts) == 0 {
		return 0
	}
	rank, lower, below := q*counts[len(counts)-1], 0.0, 0.0
	for i, count := range counts {
		if count >= rank && count > below {
			if i == len(counts)-1 {
				return lower // the last bucket has no upper bound
			}
			return lower + (bounds[i]-lower)*(rank-below)/(count-below)
		}
		lower, below = bounds[i], count
	}
	return lower
}

func TestQuantile(t *testing.T) {
	bounds, counts := []float64{1, 2, 4, 100}, []float64{0, 10, 20, 20}
	for q, want := range map[float64]float64{0.25: 1.5, 0.5: 2, 0.75: 3, 1: 4} {
		if got := quantile(q, bounds, counts); got != want {
			t.Errorf("quantile %v is %v, want %v", q, got, want)
		}
	}
	if got := quantile(0.99, bounds, []float64{0, 0, 0, 5}); got != 4 {
		t.Errorf("beyond the last bound: %v", got)
	}
	if got := quantile(0.5, nil, nil); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}
