package cgroup2_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cgroup"
	"gantry/test/node"
)

// launched is a pod with one container.
type launched struct {
	*node.Node
	setup
	pod, container string
	cgroup         string // of the container
}

// change is what a test wants otherwise.
type change func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig)

// launch runs a pod in a cgroup made as the kubelet makes it, with a container that runs a shell
// script. When the test ends the pod is removed, and nothing of it may be left.
func (s setup) launch(t *testing.T, n *node.Node, script string, changes ...change) *launched {
	t.Helper()
	ref := node.Busybox(t)
	n.Pull(ref)
	sandbox := n.Sandbox("pod")
	sandbox.Metadata.Uid = fmt.Sprintf("%08x-2222-4333-8444-%012x", os.Getpid(), time.Now().UnixNano()&0xffffffffffff)
	sandbox.Linux.CgroupParent = s.podCgroup(t, sandbox.Metadata.Uid)
	container := node.Container("main", ref, "sh", "-c", script)
	for _, c := range changes {
		c(sandbox, container)
	}
	l := &launched{Node: n, setup: s}
	l.pod, l.container = n.Launch(sandbox, container)
	l.cgroup = s.containerCgroup(sandbox.Linux.CgroupParent, l.container)
	t.Cleanup(func() {
		n.RemovePod(l.pod)
		l.leftNothing(t)
	})
	return l
}

// settleTime is how long what goes behind the answer may take to be gone, as a pod's link: its namespace is
// ended by the kernel later. Here every instruction is emulated.
const settleTime = 3 * time.Minute

// leftNothing looks for cgroups, units, network namespaces, links and mounts that name the pod.
func (l *launched) leftNothing(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(mount, l.cgroup)); err == nil {
		t.Errorf("cgroup %s is left", l.cgroup)
	}
	for what, list := range map[string][]string{
		"unit": {"systemctl", "list-units", "--all", "--plain", "--no-legend", "gantry-*.scope", "docker-*.scope"}, "network namespace": {"ip", "netns"},
		"link": {"sh", "-c", "ip -br link show type veth"}, "mount": {"sh", "-c", "grep -E '/(run|var/lib)/gantry/.*(" + l.pod + "|" + l.container + ")' /proc/self/mountinfo || true"},
	} {
		left := run(t, list[0], list[1:]...)
		for began := time.Now(); left != "" && time.Since(began) < settleTime; left = run(t, list[0], list[1:]...) {
			<-time.After(100 * time.Millisecond)
		}
		if left != "" {
			t.Errorf("%s left: %s", what, left)
		}
	}
}

// TestLimits reads every limit of a container back from the kernel, changes them in place, and reads
// them again, also after systemd has read its own state anew.
func TestLimits(t *testing.T) {
	for _, s := range setups {
		t.Run(s.String(), func(t *testing.T) {
			l := s.launch(t, s.serve(t), "sleep 100000", func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
				c.Linux.Resources = &runtimeapi.LinuxContainerResources{
					CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20,
					CpusetCpus: "1", CpusetMems: "0",
					HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
					Unified:        map[string]string{"pids.max": "77", "memory.high": "62914560"},
				}
			})
			pids := file(t, l.processCgroup(l.cgroup), "cgroup.procs")
			if strings.Count(pids, "\n") != 0 || pids == "" {
				t.Fatalf("processes of %s: %q, want one", l.cgroup, pids)
			}
			l.has(t, map[string]string{
				"cpu.max": "50000 100000", "cpu.weight": "20", "memory.max": "67108864", "memory.high": "62914560", "memory.swap.max": "0",
				"pids.max": "77", "cpuset.cpus": "1", "cpuset.mems": "0", "hugetlb.2MB.max": "4194304",
			})
			if score := l.Exec(l.container, "cat", "/proc/1/oom_score_adj", "/proc/self/oom_score_adj"); score != "0\n0\n" {
				t.Errorf("oom_score_adj %q; the service's is -999", score)
			}
			if got := l.Container(l.container).Resources.GetLinux(); got.GetMemoryLimitInBytes() != 64<<20 || got.GetCpuQuota() != 50000 {
				t.Errorf("status says %v", got)
			}
			_, err := l.Runtime.UpdateContainerResources(l.Context(), &runtimeapi.UpdateContainerResourcesRequest{
				ContainerId: l.container,
				Linux: &runtimeapi.LinuxContainerResources{
					CpuPeriod: 100000, CpuQuota: 80000, CpuShares: 1024, MemoryLimitInBytes: 96 << 20, CpusetCpus: "0-1",
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			resized := map[string]string{
				"cpu.max": "80000 100000", "cpu.weight": "39", "memory.max": "100663296", "cpuset.cpus": "0-1",
				"pids.max": "77", "hugetlb.2MB.max": "4194304",
			}
			l.has(t, resized)
			if t.Failed() {
				return
			}
			run(t, "systemctl", "daemon-reload")
			run(t, "systemctl", "set-property", "--runtime", unit, "CPUWeight=90") // makes it write cgroups again
			l.has(t, resized)
			if out := l.Exec(l.container, "cat", "/sys/fs/cgroup/memory.max"); out != "100663296\n" {
				t.Errorf("the container sees memory.max %q", out)
			}
		})
	}
}

func (l *launched) has(t *testing.T, files map[string]string) {
	t.Helper()
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(mount, l.processCgroup(l.cgroup), name))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s: %q, %v, want %s", name, got, err, want)
		}
	}
}

// TestOOM has the kernel kill a container, many times with systemd, which removes a scope's cgroup,
// and with it what the kernel counted there, the moment the last process is gone.
func TestOOM(t *testing.T) {
	for _, s := range setups {
		t.Run(s.String(), func(t *testing.T) {
			n := s.serve(t)
			rounds := 1
			if s.driver == cgroup.Systemd {
				rounds = 4
			}
			for range rounds {
				t.Run("killed", func(t *testing.T) {
					l := s.launch(t, n.For(t), "exec dd if=/dev/zero of=/dev/null bs=64M count=1", smallMemory)
					if st := l.Ended(l.container); st.ExitCode != 137 || st.Reason != "OOMKilled" {
						t.Errorf("exit code %d, reason %s, want 137, OOMKilled", st.ExitCode, st.Reason)
					}
				})
			}
			t.Run("outlived", func(t *testing.T) {
				l := s.launch(t, n.For(t), "dd if=/dev/zero of=/dev/null bs=64M count=1; echo survived; sleep 100000", smallMemory)
				l.Eventually("the shell goes on", func() bool { return strings.Contains(l.ReadLog(l.container), "survived") })
				l.Eventually("the server tells of the kill", func() bool {
					return strings.Contains(journal(t), "out of memory") && strings.Contains(journal(t), l.container)
				})
				if st := l.Container(l.container); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
					t.Errorf("the container is %v", st.State)
				}
				if kills := value(t, l.cgroup, "memory.events", "oom_kill"); kills != 1 {
					t.Errorf("memory.events counts %d kills", kills)
				}
			})
		})
	}
}

func smallMemory(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
	c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 24 << 20}
}

// journal is what the service said.
func journal(t *testing.T) string {
	t.Helper()
	return run(t, "journalctl", "--no-pager", "-o", "cat", "-u", unit)
}

// TestExecLogsAndStop ends a container whose processes ignore SIGTERM, and finds all of them gone.
func TestExecLogsAndStop(t *testing.T) {
	for _, s := range setups {
		t.Run(s.String(), func(t *testing.T) {
			l := s.launch(t, s.serve(t), `trap "" TERM; echo out; echo err >&2; for i in 1 2 3; do sleep 100000 & done; wait; wait; wait; sleep 100000`)
			l.Eventually("four processes", func() bool { return number(t, l.cgroup, "pids.current") == 4 })
			if out := l.Exec(l.container, "sh", "-c", "echo here; grep -c . /proc/self/cgroup"); out != "here\n1\n" {
				t.Errorf("exec: %q", out)
			}
			l.Eventually("the log has a line of each stream", func() bool {
				log := l.ReadLog(l.container)
				return strings.Contains(log, "stdout F out\n") && strings.Contains(log, "stderr F err\n")
			})
			began := time.Now()
			l.StopContainer(l.container, time.Second)
			if st := l.Ended(l.container); st.ExitCode != 137 {
				t.Errorf("exit code %d", st.ExitCode)
			}
			t.Logf("stopped in %v", time.Since(began).Round(time.Millisecond))
			if left := node.Processes(func(p node.Process) bool { return slices.Contains(p.Command, "100000") }); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// TestSharedPIDNamespace sees the containers of a pod as one, and all of them end with it.
func TestSharedPIDNamespace(t *testing.T) {
	for _, s := range []setup{{cgroup.Cgroupfs, "crun"}, {cgroup.Systemd, "crun"}, {cgroup.Systemd, "runc"}} {
		t.Run(s.String(), func(t *testing.T) {
			l := s.launch(t, s.serve(t), "sleep 99991 & wait", func(p *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
				p.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
				c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
			})
			contains(t, "processes", l.Exec(l.container, "ps", "-o", "pid,args"), "pause")
			l.StopContainer(l.container, 0)
			l.Ended(l.container)
			l.Eventually("no process outlives its container", func() bool {
				return len(node.Processes(func(p node.Process) bool { return slices.Contains(p.Command, "99991") })) == 0
			})
		})
	}
}

// TestOwnParents has pods of clients that name no cgroup parent, as crictl's.
func TestOwnParents(t *testing.T) {
	for _, s := range []setup{{cgroup.Cgroupfs, "crun"}, {cgroup.Systemd, "crun"}} {
		t.Run(s.String(), func(t *testing.T) {
			l := s.launch(t, s.serve(t), "sleep 100000", func(p *runtimeapi.PodSandboxConfig, _ *runtimeapi.ContainerConfig) {
				p.Linux.CgroupParent = ""
			})
			if len(l.cgroups()) == 0 {
				t.Error("no cgroup names the container")
			}
			l.StopContainer(l.container, 0)
			if _, err := l.Runtime.RemovePodSandbox(l.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: l.pod}); err != nil {
				t.Fatal(err)
			}
			if left := l.cgroups(); len(left) > 0 {
				t.Errorf("left: %s", left)
			}
		})
	}
}

// cgroups are those that name the pod or the container. Others may go while they are looked for.
func (l *launched) cgroups() (found []string) {
	_ = filepath.WalkDir(mount, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && (strings.Contains(d.Name(), l.container) || strings.Contains(d.Name(), l.pod)) {
			found = append(found, path)
		}
		return nil
	})
	return found
}

// TestDoctor finds nothing wrong with the machine.
func TestDoctor(t *testing.T) {
	usual.serve(t)
	out, err := exec.CommandContext(t.Context(), node.Binary(t, "gantry"), "doctor").CombinedOutput()
	contains(t, "doctor", string(out), "cgroup v2")
	if err != nil {
		t.Errorf("doctor: %v\n%s", err, out)
	}
}
