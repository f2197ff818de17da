package cgroup_test

import (
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/cgroup"
)

func TestDriverPaths(t *testing.T) {
	tests := map[string]struct {
		driver      cgroup.Driver
		parent      string
		pod         string
		container   string
		cgroupsPath string
	}{
		"cgroupfs keeps the kubelet's parent": {
			driver: cgroup.Cgroupfs, parent: "/kubepods/burstable/pod1",
			pod: "/kubepods/burstable/pod1", container: "/kubepods/burstable/pod1/c1", cgroupsPath: "/kubepods/burstable/pod1/c1",
		},
		"cgroupfs gives a pod without parent its own": {
			driver: cgroup.Cgroupfs,
			pod:    "/gantry/p1", container: "/gantry/p1/c1", cgroupsPath: "/gantry/p1/c1",
		},
		"systemd expands a slice": {
			driver: cgroup.Systemd, parent: "kubepods-burstable-pod1.slice",
			pod:         "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice",
			container:   "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/gantry-c1.scope",
			cgroupsPath: "kubepods-burstable-pod1.slice:gantry:c1",
		},
		"systemd takes a slice's path too": {
			driver: cgroup.Systemd, parent: "/kubepods.slice/kubepods-pod1.slice",
			pod:         "/kubepods.slice/kubepods-pod1.slice",
			container:   "/kubepods.slice/kubepods-pod1.slice/gantry-c1.scope",
			cgroupsPath: "kubepods-pod1.slice:gantry:c1",
		},
		"systemd gives a pod without parent its own": {
			driver: cgroup.Systemd,
			pod:    "/gantry.slice/gantry-p1.slice", container: "/gantry.slice/gantry-p1.slice/gantry-c1.scope",
			cgroupsPath: "gantry-p1.slice:gantry:c1",
		},
	}
	for rule, tt := range tests {
		t.Run(rule, func(t *testing.T) {
			parent, err := tt.driver.Parent(tt.parent, "p1")
			if err != nil || parent != tt.pod {
				t.Fatalf("parent %q, %v, want %q", parent, err, tt.pod)
			}
			if got := tt.driver.Container(parent, "c1"); got != tt.container {
				t.Errorf("container %q, want %q", got, tt.container)
			}
			if got := tt.driver.OCIPath(parent, "c1"); got != tt.cgroupsPath {
				t.Errorf("cgroupsPath %q, want %q", got, tt.cgroupsPath)
			}
		})
	}
}

func TestParentsThatAreRefused(t *testing.T) {
	tests := map[string]struct {
		driver cgroup.Driver
		parent string
	}{
		"cgroupfs, a slice's name":    {cgroup.Cgroupfs, "kubepods-pod1.slice"},
		"cgroupfs, out of the mount":  {cgroup.Cgroupfs, "/a/../../b"},
		"systemd, no slice":           {cgroup.Systemd, "/kubepods/pod1"},
		"systemd, an empty part":      {cgroup.Systemd, "a--b.slice"},
		"systemd, nothing but .slice": {cgroup.Systemd, ".slice"},
	}
	for rule, tt := range tests {
		t.Run(rule, func(t *testing.T) {
			if got, err := tt.driver.Parent(tt.parent, "p1"); !errdefs.IsInvalidArgument(err) {
				t.Errorf("parent %q, %v", got, err)
			}
		})
	}
}

func TestParseDriverNamesTheBadValue(t *testing.T) {
	if d, err := cgroup.ParseDriver("systemd"); err != nil || d != cgroup.Systemd {
		t.Errorf("systemd: %v, %v", d, err)
	}
	if _, err := cgroup.ParseDriver("upstart"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("upstart: %v", err)
	}
}

func TestWeightCoversTheRange(t *testing.T) {
	for shares, want := range map[int64]int64{0: 1, 2: 1, 1024: 39, 262144: 10000, 1 << 40: 10000} {
		if got := cgroup.Weight(shares); got != want {
			t.Errorf("Weight(%d) = %d, want %d", shares, got, want)
		}
	}
}
