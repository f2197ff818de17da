package cri_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/pod"
)

// What an answer was encoded as before is sent again only while it is still true.
func TestListsTellEveryChange(t *testing.T) {
	m := node()
	conn, _ := serve(t, m, cri.Interceptors{})
	client := runtime.NewRuntimeServiceClient(conn)
	check := func(when string) {
		t.Helper()
		for range 2 { // made, and remembered
			for _, f := range []*runtime.ContainerFilter{nil, {State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING}}} {
				got, err := client.ListContainers(t.Context(), &runtime.ListContainersRequest{Filter: f})
				if err != nil {
					t.Fatal(err)
				}
				want, err := service(m).ListContainers(t.Context(), &runtime.ListContainersRequest{Filter: f})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
					t.Errorf("%s, filter %v: containers %s", when, f, diff)
				}
			}
			got, err := client.ListPodSandbox(t.Context(), &runtime.ListPodSandboxRequest{})
			if err != nil {
				t.Fatal(err)
			}
			want, err := service(m).ListPodSandbox(t.Context(), &runtime.ListPodSandboxRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("%s: pods %s", when, diff)
			}
		}
	}
	check("at first")
	ended := *m.containers[0]
	ended.State = pod.ContainerExited
	stopped := *m.pods[0]
	stopped.State = pod.SandboxNotReady
	m.containers[0], m.pods[0] = &ended, &stopped
	check("when one has ended")
	m.containers, m.pods = slices.Delete(slices.Clone(m.containers), 1, 2), slices.Clone(m.pods[:1])
	check("when one is gone")
	for i := range 200 {
		more := ended
		more.ID = fmt.Sprint("more", i)
		more.Spec.Labels = map[string]string{"long": strings.Repeat("x", 500)}
		m.containers = append(m.containers, &more)
	}
	check("when there are many")
	m.containers, m.pods = nil, nil
	check("when there are none")
}

func TestAnswersThatAreTheSameAreMadeOnce(t *testing.T) {
	m := node()
	s := service(m)
	list := func() *runtime.ListContainersResponse {
		t.Helper()
		r, err := s.ListContainers(t.Context(), &runtime.ListContainersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	before := list()
	if list() != before {
		t.Error("the same containers were converted twice")
	}
	m.containers = m.containers[1:]
	if list() == before {
		t.Error("other containers gave the same answer")
	}
}

func BenchmarkListContainers(b *testing.B) {
	m := node()
	m.containers = nil
	for i := range 100 {
		m.containers = append(m.containers, &pod.Container{
			ID: fmt.Sprintf("%064d", i), SandboxID: fmt.Sprintf("%064d", i+1000), State: pod.ContainerRunning,
			Spec: pod.ContainerSpec{Name: "main", Labels: map[string]string{"io.kubernetes.pod.name": "web"}},
		})
	}
	s := service(m)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.ListContainers(b.Context(), &runtime.ListContainersRequest{}); err != nil {
			b.Fatal(err)
		}
	}
}
