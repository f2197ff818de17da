package observe_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"gantry/internal/cni"
	"gantry/internal/observe"
	"gantry/internal/pod"
)

// held is a node with two pods and three containers, whose keeper may be dead.
type held struct{ dead error }

func (held) Pods(context.Context) []*pod.Sandbox {
	return []*pod.Sandbox{{State: pod.SandboxReady}, {
		ID: "p", State: pod.SandboxReady, Spec: pod.SandboxSpec{Metadata: pod.Metadata{Name: "web", Namespace: "lab"}},
	}}
}

func (held) Containers(context.Context) []*pod.Container {
	return []*pod.Container{{State: pod.ContainerRunning}, {State: pod.ContainerExited}, {
		State: pod.ContainerRunning, SandboxID: "p", Spec: pod.ContainerSpec{Name: "main"}, LogDropped: 7,
	}}
}

func (h held) Ping(context.Context) error { return h.dead }
func (held) Connections() uint64          { return 3 }

func TestNode(t *testing.T) {
	for _, c := range []struct {
		rule string
		dead error
		up   string
	}{
		{"a keeper that answers is up", nil, "1"},
		{"a keeper that does not is down", errors.New("gone"), "0"},
	} {
		t.Run(c.rule, func(t *testing.T) {
			reg := prometheus.NewRegistry()
			if err := observe.WatchNode(held{c.dead}, held{c.dead}, reg); err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			observe.Handler(reg, nil).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
			for _, want := range []string{
				`gantry_pods{state="ready"} 2`, `gantry_pods{state="notready"} 0`,
				`gantry_containers{state="created"} 0`, `gantry_containers{state="running"} 2`, `gantry_containers{state="exited"} 1`,
				"gantry_keeper_up " + c.up, "gantry_keeper_connections_total 3",
				`gantry_container_log_dropped_bytes_total{container="main",namespace="lab",pod="web"} 7`,
			} {
				if !strings.Contains(w.Body.String(), want+"\n") {
					t.Errorf("no %s in\n%s", want, w.Body)
				}
			}
		})
	}
}

// wire is a network that fails to detach.
type wire struct{ observe.Connector }

func (wire) Attach(context.Context, *cni.Attachment) (*pod.Network, error) {
	return &pod.Network{}, nil
}
func (wire) Detach(context.Context, *cni.Attachment) error { return errors.New("no") }

func TestNetwork(t *testing.T) {
	reg := prometheus.NewRegistry()
	n, err := observe.NewNetwork(wire{}, reg)
	if err != nil {
		t.Fatal(err)
	}
	if got, failed := n.Attach(t.Context(), nil); got == nil || failed != nil {
		t.Errorf("%v, %v", got, failed)
	}
	if n.Detach(t.Context(), nil) == nil {
		t.Error("the error of a detach is lost")
	}
	all, err := reg.Gather()
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	counts := map[string]uint64{}
	for _, m := range all[0].GetMetric() {
		counts[m.GetLabel()[0].GetValue()+" "+m.GetLabel()[1].GetValue()] = m.GetHistogram().GetSampleCount()
	}
	if counts["attach ok"] != 1 || counts["detach error"] != 1 || len(counts) != 2 {
		t.Errorf("%v", counts)
	}
}
