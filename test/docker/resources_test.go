package docker_test

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/labdocker"
	"gantry/test/node"
)

// hogs is a program that takes more memory than it may.
var hogs = []string{"sh", "-c", "trap '' TERM; x=a; while :; do x=$x$x; done"}

// TestLimitsOfContainers covers what the kernel does to containers that dockerd runs.
func TestLimitsOfContainers(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			d := labdocker.Start(t, labdocker.Options{Version: v})
			n := node.Start(t, node.Options{Flags: []string{"--engine", "docker", "--docker-endpoint", d.Endpoint()}})
			image := d.Busybox()
			t.Run("an OOM kill has its exit code and reason", func(t *testing.T) { killedOutOfMemory(t, n.For(t), image) })
			t.Run("limits change while it runs", func(t *testing.T) { updated(t, n.For(t), image) })
			t.Run("the writable layer's size is told", func(t *testing.T) { layerSize(t, n.For(t), image) })
		})
	}
}

func killedOutOfMemory(t *testing.T, n *node.Node, image string) {
	c := node.Container("hog", image, hogs...)
	c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20}
	pod, container := launch(n, "hog", "", c)
	if s := n.Ended(container); s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("ended with %d, %q", s.ExitCode, s.Reason)
	}
	n.RemovePod(pod)
}

func updated(t *testing.T, n *node.Node, image string) {
	c := node.Container("main", image, idle...)
	c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 20000, CpuPeriod: 100000, CpuShares: 200}
	pod, container := launch(n, "updated", "", c)
	limits := func() string {
		return n.Exec(container, "sh", "-c", `cd /sys/fs/cgroup
			cat memory.max cpu.max 2>/dev/null || cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares`)
	}
	if got := strings.Fields(limits()); len(got) < 2 || got[0] != "67108864" || got[1] != "20000" {
		t.Fatalf("limits are %v", got)
	}
	want := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuQuota: 50000, CpuPeriod: 100000, CpuShares: 512}
	_, err := n.Runtime.UpdateContainerResources(n.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: container, Linux: want})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Fields(limits()); len(got) < 2 || got[0] != "100663296" || got[1] != "50000" {
		t.Errorf("limits are %v after the update", got)
	}
	if r := n.Container(container).Resources.GetLinux(); r.GetMemoryLimitInBytes() != 96<<20 || r.GetCpuQuota() != 50000 || r.GetCpuShares() != 512 {
		t.Errorf("the status says %v", r)
	}
	n.RemovePod(pod)
}

func layerSize(t *testing.T, n *node.Node, image string) {
	pod, container := launch(n, "writer", "", node.Container("main", image, "sh", "-c", "dd if=/dev/zero of=/data bs=1M count=3; sync; echo up; sleep 10000"))
	n.Eventually("the program has written", func() bool { return strings.Contains(n.ReadLog(container), "stdout F up") })
	var at int64
	n.Eventually("a size", func() bool {
		r, err := n.Runtime.ContainerStats(n.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: container})
		if err != nil {
			t.Fatal(err)
		}
		layer := r.Stats.GetWritableLayer()
		at = layer.GetTimestamp()
		return layer.GetUsedBytes().GetValue() >= 3<<20
	})
	r, err := n.Runtime.ContainerStats(n.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: container})
	if err != nil || r.Stats.WritableLayer.GetTimestamp() != at || r.Stats.Cpu.Timestamp <= at {
		t.Errorf("the size was measured anew, or has the time of the question: %v, %v", r, err)
	}
	n.RemovePod(pod)
}
