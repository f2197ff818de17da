package docker_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"gantry/internal/engine"
	"gantry/internal/labdocker"
	"gantry/internal/pod"
)

func TestUserOfAContainer(t *testing.T) {
	s := newStation(t, labdocker.Options{})
	sandbox := &pod.Sandbox{Spec: pod.SandboxSpec{
		Key: pod.NewKey(), Metadata: pod.Metadata{Name: "user", Namespace: "lab", UID: "uid"}, CgroupParent: s.dockerd.Cgroup,
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, IPC: pod.NamespacePod},
	}}
	made, err := s.CreateSandbox(t.Context(), &sandbox.Spec, engine.Files{})
	if err != nil {
		t.Fatal(err)
	}
	sandbox.ID = made.ID
	named := int64(1000)
	for _, c := range []struct {
		rule     string
		security pod.Security
		want     *pod.User
	}{
		{"root is the image's", pod.Security{}, &pod.User{Groups: []int64{0}}},
		{"groups of the image's /etc/group and those that the client adds", pod.Security{RunAsUser: &named, SupplementalGroups: []int64{7}},
			&pod.User{UID: 1000, GID: 1000, Groups: []int64{1000, 500, 501, 7}}},
		{"a name is looked up", pod.Security{RunAsUsername: "www-data"}, &pod.User{UID: 33, GID: 33, Groups: []int64{33}}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			spec := &pod.ContainerSpec{Key: pod.NewKey(), Sandbox: sandbox.Spec.Key, Name: "main", Command: []string{"true"},
				Namespaces: sandbox.Spec.Namespaces, Security: c.security}
			created, err := s.CreateContainer(t.Context(), &engine.Create{Spec: spec, Sandbox: sandbox, Image: s.image})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, created.User); d != "" {
				t.Error(d)
			}
		})
	}
}
