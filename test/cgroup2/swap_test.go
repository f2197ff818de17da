package cgroup2_test

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cgroup"
)

// swapLimit is more than the containers of TestSwap need, and less than the node has.
const swapLimit = "100663296"

// swapOn gives the machine 128 MiB of swap.
func swapOn(t *testing.T) {
	t.Helper()
	const path = "/var/swap"
	run(t, "dd", "if=/dev/zero", "of="+path, "bs=1M", "count=128")
	run(t, "chmod", "600", path)
	run(t, "mkswap", path)
	run(t, "swapon", path)
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "swapoff", path).CombinedOutput(); err != nil {
			t.Errorf("swapoff: %v: %s", err, out)
		}
		_ = os.Remove(path)
	})
}

// asTheKubelet asks for memory and swap as the kubelet does on cgroup v2.
func asTheKubelet(swap string) change {
	return func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{
			MemoryLimitInBytes: 32 << 20, Unified: map[string]string{"memory.swap.max": swap, "memory.oom.group": "1"},
		}
	}
}

// TestSwap fills more memory than a container may have, with the kubelet's LimitedSwap and NoSwap.
func TestSwap(t *testing.T) {
	const fill = "dd if=/dev/zero of=/dev/shm/x bs=1M count=60 2>/dev/null; echo filled; sleep 100000 & wait"
	swapOn(t)
	for _, s := range setups {
		t.Run(s.String(), func(t *testing.T) {
			n := s.serve(t)
			t.Run("limited", func(t *testing.T) {
				l := s.launch(t, n.For(t), fill, asTheKubelet(swapLimit))
				l.Eventually("the container has filled its memory", func() bool { return strings.Contains(l.ReadLog(l.container), "filled") })
				asked := map[string]string{"memory.max": "33554432", "memory.swap.max": swapLimit, "memory.oom.group": "1"}
				l.has(t, asked)
				if used := number(t, l.cgroup, "memory.swap.current"); used < 20<<20 {
					t.Errorf("%d bytes are swapped, of 60 MiB in a limit of 32", used)
				}
				l.tellsOfSwap(t)
				run(t, "systemctl", "daemon-reload")
				run(t, "systemctl", "set-property", "--runtime", unit, "CPUWeight=90") // makes it write cgroups again
				if s.driver == cgroup.Systemd && s.processCgroup("") == "" {
					delete(asked, "memory.oom.group") // systemd's own, in the scope: docs/cgroup2.md
				}
				l.has(t, asked)
			})
			t.Run("none", func(t *testing.T) {
				l := s.launch(t, n.For(t), fill, asTheKubelet("0"))
				if st := l.Ended(l.container); st.ExitCode != 137 || st.Reason != "OOMKilled" {
					t.Errorf("exit code %d, reason %s, want 137, OOMKilled", st.ExitCode, st.Reason)
				}
			})
		})
	}
}

// tellsOfSwap reads what the server says of a container's swap.
func (l *launched) tellsOfSwap(t *testing.T) {
	t.Helper()
	r, err := l.Runtime.ContainerStats(l.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: l.container})
	if err != nil {
		t.Fatal(err)
	}
	swap := r.Stats.Swap
	used := swap.GetSwapUsageBytes().GetValue()
	if used < 20<<20 {
		t.Errorf("statistics say that %d bytes are swapped", used)
	}
	// crun's limit is in a cgroup below that of the statistics: docs/cgroup2.md.
	if left := swap.GetSwapAvailableBytes(); l.processCgroup("") == "" && left.GetValue() != 96<<20-used {
		t.Errorf("statistics say that %d bytes are left of 96 MiB, with %d used", left.GetValue(), used)
	}
	if got := l.Container(l.container).Resources.GetLinux().GetUnified()["memory.swap.max"]; got != swapLimit {
		t.Errorf("the status says memory.swap.max %q", got)
	}
}
