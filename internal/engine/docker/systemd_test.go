package docker_test

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/system"

	"gantry/internal/engine/docker"
)

// TestSystemdDriver is what a dockerd with native.cgroupdriver=systemd is told, which wants a slice's name alone, and
// where the processes are then.
func TestSystemdDriver(t *testing.T) {
	for rule, tt := range map[string]struct {
		parent, told, at string
		bad              bool
	}{
		"the kubelet's path of a pod's slice": {
			parent: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice", told: "kubepods-burstable-pod1_2.slice",
			at: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/docker-id.scope",
		},
		"a slice's name": {parent: "kubepods-pod1.slice", told: "kubepods-pod1.slice", at: "/kubepods.slice/kubepods-pod1.slice/docker-id.scope"},
		"none is a slice of the pod's own": {
			parent: "", told: "gantry-0f0f.slice", at: "/gantry.slice/gantry-0f0f.slice/docker-id.scope",
		},
		"what is no slice": {parent: "/kubepods/pod1", bad: true},
	} {
		t.Run(rule, func(t *testing.T) {
			n, err := docker.NewNode(system.Info{CgroupDriver: "systemd", CgroupVersion: "2"}, "1.56")
			if err != nil {
				t.Fatal(err)
			}
			r := request()
			r.Sandbox.Spec.Key, r.Sandbox.Spec.CgroupParent = "0f0f", tt.parent
			asked, err := n.Container(r)
			pause, wrong := n.Pause(&r.Sandbox.Spec)
			if tt.bad {
				if !errdefs.IsInvalidArgument(err) || !errdefs.IsInvalidArgument(wrong) {
					t.Errorf("%v, %v; want ErrInvalidArgument", err, wrong)
				}
				return
			}
			if err != nil || wrong != nil {
				t.Fatal(err, wrong)
			}
			if got, beside := asked.HostConfig.CgroupParent, pause.HostConfig.CgroupParent; got != tt.told || beside != tt.told {
				t.Errorf("docker is told %q, and %q for the pause container", got, beside)
			}
			if asked.HostConfig.CgroupnsMode != "private" {
				t.Errorf("cgroup namespace: %q", asked.HostConfig.CgroupnsMode)
			}
			if got := n.Cgroup(tt.told, "id"); got != tt.at {
				t.Errorf("processes are looked for in %s", got)
			}
		})
	}
}
