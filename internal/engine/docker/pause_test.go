package docker_test

import (
	"errors"
	"testing"

	"gantry/internal/engine"
	"gantry/internal/labdocker"
	"gantry/internal/pod"
)

// TestPauseImageThatWasRemoved takes the image away between two pods.
func TestPauseImageThatWasRemoved(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			s := newStationOn(t, labdocker.Start(t, labdocker.Options{Version: v}))
			for range 2 {
				spec := &pod.SandboxSpec{
					Key: pod.NewKey(), Metadata: pod.Metadata{Name: "pause", Namespace: "lab", UID: "uid"}, CgroupParent: s.dockerd.Cgroup,
					Namespaces: pod.Namespaces{Network: pod.NamespacePod, IPC: pod.NamespacePod},
				}
				if _, err := s.CreateSandbox(t.Context(), spec, engine.Files{}); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(s.StopSandbox(t.Context(), spec.Key), s.RemoveSandbox(t.Context(), spec.Key)); err != nil {
					t.Fatal(err)
				}
				s.dockerd.Docker("rmi", "localhost/gantry-pause:1")
			}
		})
	}
}
