package cgroup2_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cgroup"
)

// onDocker is a node whose Docker Engine has systemd make cgroups, as kubeadm's documentation has it.
var onDocker = setup{cgroup.Systemd, "docker"}

const (
	dockerSocket   = "/run/docker-test/docker.sock"
	dockerPrograms = "/payload/docker"
)

// startDocker starts today's Docker Engine as units of systemd's, until the test ends. Its containers end with it.
func startDocker(t *testing.T) {
	t.Helper()
	dir := filepath.Dir(dockerSocket)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	unit := func(name string, command ...string) {
		run(t, "systemd-run", append([]string{
			"--unit=" + name, "--property=Type=notify", "--property=Delegate=yes", "--property=KillMode=process",
			"--setenv=PATH=" + dockerPrograms + ":/usr/sbin:/usr/bin:/sbin:/bin",
		}, command...)...)
		t.Cleanup(func() {
			if t.Failed() {
				t.Log(run(t, "journalctl", "--no-pager", "-o", "cat", "-n", "100", "-u", name))
			}
			run(t, "systemctl", "stop", name)
		})
	}
	containerd := dir + "/containerd.sock"
	unit("test-containerd", dockerPrograms+"/containerd", "--address", containerd, "--root", "/var/lib/docker-test/containerd", "--state", dir+"/containerd")
	unit("test-dockerd", dockerPrograms+"/dockerd", "--host", "unix://"+dockerSocket, "--containerd", containerd,
		"--data-root", "/var/lib/docker-test/docker", "--exec-root", dir+"/exec", "--pidfile", dir+"/dockerd.pid",
		"--exec-opt", "native.cgroupdriver=systemd", "--bridge", "none", "--iptables=false", "--ip6tables=false")
}

// TestDockerUnderSystemd runs a pod on a Docker Engine that has systemd make cgroups, in the slice that the kubelet made.
func TestDockerUnderSystemd(t *testing.T) {
	startDocker(t)
	n := onDocker.serve(t)
	l := onDocker.launch(t, n, "echo to the log; i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; sleep 100000", func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{
			CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, CpusetCpus: "1",
			// The kubelet asks for the last two of every container: Docker has no word for one of them.
			Unified: map[string]string{"pids.max": "77", "memory.swap.max": "1048576", "memory.oom.group": "1"},
		}
	})
	config, err := n.Runtime.RuntimeConfig(n.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || config.Linux.CgroupDriver != runtimeapi.CgroupDriver_SYSTEMD {
		t.Errorf("the kubelet is told the cgroup driver %v, %v", config, err)
	}
	if pids := file(t, l.cgroup, "cgroup.procs"); pids == "" {
		t.Errorf("no process is in %s", l.cgroup)
	}
	pause := filepath.Join(filepath.Dir(l.cgroup), "docker-"+l.pod+".scope")
	if pids := file(t, pause, "cgroup.procs"); pids == "" {
		t.Errorf("the pause container's process is not in %s", pause)
	}
	l.has(t, map[string]string{ // runc since 1.3 makes 1024 shares a weight of 100, and 512 one of 59
		"cpu.max": "50000 100000", "cpu.weight": "59", "memory.max": "67108864", "pids.max": "77", "cpuset.cpus": "1",
		"memory.swap.max": "1048576", "memory.oom.group": "1",
	})
	group := ""
	for range 5 { // systemd may come to its own value after the server has written: docs/cgroup2.md
		_, err = n.Runtime.UpdateContainerResources(n.Context(), &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: l.container,
			Linux:       &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 80000, CpuShares: 1024, MemoryLimitInBytes: 96 << 20},
		})
		if err != nil {
			t.Fatal(err)
		}
		if group = file(t, l.cgroup, "memory.oom.group"); group == "1" {
			break
		}
	}
	if group != "1" {
		t.Errorf("after every update memory.oom.group is %s", group)
	}
	resized := map[string]string{"cpu.max": "80000 100000", "cpu.weight": "100", "memory.max": "100663296", "memory.swap.max": "1048576", "pids.max": "77"}
	l.has(t, resized)
	run(t, "systemctl", "daemon-reload")
	l.has(t, resized)

	n.Eventually("the log has the line", func() bool { return strings.Contains(n.ReadLog(l.container), " stdout F to the log\n") })
	if got := n.Exec(l.container, "cat", "/sys/fs/cgroup/memory.max"); got != "100663296\n" {
		t.Errorf("the container sees memory.max %q", got)
	}
	n.Eventually("statistics are those of the cgroup", func() bool {
		r, err := n.Runtime.ListPodSandboxStats(n.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
		if err != nil || len(r.Stats) != 1 || len(r.Stats[0].Linux.Containers) != 1 {
			return false
		}
		c := r.Stats[0].Linux.Containers[0]
		return c.Cpu.GetUsageCoreNanoSeconds().GetValue() > 0 && c.Memory.GetUsageBytes().GetValue() > 0 &&
			r.Stats[0].Linux.Memory.GetUsageBytes().GetValue() >= c.Memory.GetUsageBytes().GetValue() &&
			c.Cpu.GetUsageCoreNanoSeconds().GetValue() <= 1000*value(t, l.cgroup, "cpu.stat", "usage_usec")
	})

	restart(t, n)
	if s := n.Container(l.container).State; s != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after a restart of gantry the container is %v", s)
	}
	n.StopContainer(l.container, time.Second)
	if s := n.Container(l.container); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("stopped, the container is %v with %d", s.State, s.ExitCode)
	}
}

// dockerConfig is what /etc/gantry/config.toml adds for onDocker.
func dockerConfig() string {
	return fmt.Sprintf("engine = \"docker\"\n[docker]\nendpoint = %q\n", "unix://"+dockerSocket)
}
