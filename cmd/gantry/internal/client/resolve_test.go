package client_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/client"
)

// lists is a server that only lists.
type lists struct {
	cri.RuntimeService
	pods       []*v1.PodSandbox
	containers []*v1.Container
}

func (l lists) ListPodSandbox(context.Context, *v1.PodSandboxFilter) ([]*v1.PodSandbox, error) {
	return l.pods, nil
}

func (l lists) ListContainers(context.Context, *v1.ContainerFilter) ([]*v1.Container, error) {
	return l.containers, nil
}

func box(id, namespace, name string, ready bool) *v1.PodSandbox {
	p := &v1.PodSandbox{Id: id, Metadata: &v1.PodSandboxMetadata{Name: name, Namespace: namespace}, State: v1.PodSandboxState_SANDBOX_NOTREADY}
	if ready {
		p.State = v1.PodSandboxState_SANDBOX_READY
	}
	return p
}

func ctr(id, pod, name string, running bool) *v1.Container {
	c := &v1.Container{Id: id, PodSandboxId: pod, Metadata: &v1.ContainerMetadata{Name: name}, State: v1.ContainerState_CONTAINER_EXITED}
	if running {
		c.State = v1.ContainerState_CONTAINER_RUNNING
	}
	return c
}

var node = &client.Client{Runtime: lists{
	pods: []*v1.PodSandbox{
		box("aa11", "default", "web", true), box("aa22", "default", "web", false), box("bb11", "shop", "db", true),
		box("bb22", "other", "db", true), box("cc11", "default", "lonely", true), box("dd11", "default", "empty", true),
	},
	containers: []*v1.Container{
		ctr("1111", "aa11", "server", true), ctr("1122", "aa11", "sidecar", true), ctr("2211", "aa22", "server", false),
		ctr("3311", "bb11", "main", true), ctr("3322", "bb22", "main", true), ctr("aa33", "cc11", "only", false), ctr("4411", "cc11", "now", true),
	},
}}

func TestPodNames(t *testing.T) {
	tests := map[string]struct{ arg, id, err string }{
		"id":                                  {"aa22", "aa22", ""},
		"name means the ready one":            {"web", "aa11", ""},
		"namespace and name":                  {"shop/db", "bb11", ""},
		"unambiguous beginning of an id":      {"cc", "cc11", ""},
		"ambiguous name":                      {"db", "", `pod "db" is ambiguous: bb11 (shop/db), bb22 (other/db)`},
		"ambiguous beginning":                 {"aa", "", `pod "aa" is ambiguous`},
		"nothing":                             {"nobody", "", `pod "nobody": not found`},
		"the empty name is nobody's":          {"", "", "not found"},
		"a container's name is no pod's name": {"server", "", "not found"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p, err := node.Pod(t.Context(), tt.arg)
			check(t, p.GetId(), err, tt.id, tt.err)
		})
	}
}

func TestContainerNames(t *testing.T) {
	tests := map[string]struct{ arg, id, err string }{
		"id":                          {"2211", "2211", ""},
		"name means the running one":  {"server", "1111", ""},
		"pod and name":                {"web/sidecar", "1122", ""},
		"namespace, pod and name":     {"other/db/main", "3322", ""},
		"ambiguous":                   {"main", "", "3311 (shop/db/main), 3322 (other/db/main)"},
		"pod with one running":        {"lonely", "4411", ""},
		"pod with several":            {"web", "", "pod default/web has several containers: default/web/server, default/web/sidecar"},
		"pod without any":             {"empty", "", "pod default/empty has no containers"},
		"nothing":                     {"nobody", "", `no pod and no container "nobody": not found`},
		"beginning of a container id": {"33", "", "ambiguous"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := node.OneContainer(t.Context(), tt.arg)
			check(t, c.GetId(), err, tt.id, tt.err)
		})
	}
}

func TestPodOrContainer(t *testing.T) {
	tests := map[string]struct{ arg, id, err string }{
		"pod's name":                    {"web", "aa11", ""},
		"container's name":              {"sidecar", "1122", ""},
		"a beginning that fits several": {"aa", "", "ambiguous"},
		"a whole id":                    {"aa33", "aa33", ""},
		"nothing":                       {"nobody", "", `no pod and no container "nobody"`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			found, err := node.PodOrContainer(t.Context(), tt.arg)
			id := found.Pod.GetId()
			if found.Container != nil {
				id = found.Container.Id
			}
			check(t, id, err, tt.id, tt.err)
		})
	}
}

func check(t *testing.T, id string, err error, wantID, wantErr string) {
	t.Helper()
	if wantErr == "" && err != nil {
		t.Fatal(err)
	}
	if wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)) {
		t.Fatalf("got %v, want %q", err, wantErr)
	}
	if id != wantID {
		t.Errorf("got %q, want %q", id, wantID)
	}
}

func TestMessageHasNoFrame(t *testing.T) {
	inner := status.Error(codes.NotFound, "image x: not found")
	wrapped := errors.Join(errors.New("first"), inner)
	if got := client.Message(inner); got != "image x: not found" {
		t.Error(got)
	}
	if got := client.Message(wrapped); got != "first\nimage x: not found" {
		t.Error(got)
	}
	if got := client.Message(errors.New("plain")); got != "plain" {
		t.Error(got)
	}
	if !client.NotFound(inner) || client.NotFound(errors.New("plain")) {
		t.Error("NotFound")
	}
}
