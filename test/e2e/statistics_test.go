package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

// busy writes 512 KiB, asks the node's bridge for a page that is not there, uses CPU for a while, says so and stays.
const busy = `dd if=/dev/zero of=/written bs=1024 count=512 2>/dev/null
wget -q -T 5 -O /dev/null http://$(ip route | awk '/^default/ { print $3 }'):1/ 2>/dev/null
i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done
echo done > /done; exec sleep 100000`

// cgroupNumber reads a file of a cgroup: of v2 when it is there, else of the v1 controller.
func cgroupNumber(t *testing.T, cgroup, v2, controller, v1 string) uint64 {
	t.Helper()
	const root = "/sys/fs/cgroup"
	data, err := os.ReadFile(filepath.Join(root, cgroup, v2))
	if err != nil {
		if data, err = os.ReadFile(filepath.Join(root, controller, cgroup, v1)); err != nil {
			t.Fatal(err)
		}
	}
	value, micros := strings.CutPrefix(strings.SplitN(string(data), "\n", 2)[0], "usage_usec ")
	n, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if micros {
		n *= 1000
	}
	return n
}

func TestStatisticsAreWhatTheKernelSays(t *testing.T) {
	for _, env := range environments[:2] {
		t.Run(env.name, func(t *testing.T) {
			n := node.Start(t, env.options)
			sandbox := n.Sandbox("busy")
			config := node.Container("busy", n.Pull(node.Busybox(t)), "sh", "-c", busy)
			config.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
			pod, container := n.Launch(sandbox, config)
			t.Cleanup(func() { n.RemovePod(pod) })
			n.Eventually("it has done its work", func() bool {
				r, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: []string{"test", "-e", "/done"}})
				return err == nil && r.ExitCode == 0
			})
			cgroup := sandbox.Linux.CgroupParent + "/" + container
			checkContainerStats(t, n, container, cgroup)
			podCPU := checkPodStats(t, n, pod, container)
			checkMetrics(t, n, pod, container)
			if _, err := n.Runtime.RemoveContainer(n.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: container}); err != nil {
				t.Fatal(err)
			}
			after := podStats(t, n, pod)
			if cpu := after.Cpu.UsageCoreNanoSeconds.GetValue(); cpu < podCPU {
				t.Errorf("the pod had used %d ns, and %d when its container was gone", podCPU, cpu)
			}
			if eth0 := after.Network.GetDefaultInterface(); eth0.GetName() != "eth0" || eth0.TxBytes.GetValue() == 0 {
				t.Errorf("without a process in it the pod's network has %v", eth0)
			}
		})
	}
}

func checkContainerStats(t *testing.T, n *node.Node, container, cgroup string) {
	t.Helper()
	var s *runtimeapi.ContainerStats
	cpu := func() uint64 { return cgroupNumber(t, cgroup, "cpu.stat", "cpuacct", "cpuacct.usage") }
	memory := func() uint64 { return cgroupNumber(t, cgroup, "memory.current", "memory", "memory.usage_in_bytes") }
	n.Eventually("the writable layer is measured", func() bool {
		before, had := cpu(), memory()
		r, err := n.Runtime.ContainerStats(n.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: container})
		if err != nil {
			t.Fatal(err)
		}
		s = r.Stats
		if got := s.Cpu.UsageCoreNanoSeconds.GetValue(); got < before || got > cpu() {
			t.Errorf("CPU %d ns, the file says %d before and %d after", got, before, cpu())
		}
		has := memory()
		if got := s.Memory.UsageBytes.GetValue(); got > max(had, has)+1<<20 || got+1<<20 < min(had, has) {
			t.Errorf("memory %d, the file says %d before and %d after", got, had, has)
		}
		return s.WritableLayer.GetUsedBytes().GetValue() >= 512<<10
	})
	if w := s.WritableLayer; w.UsedBytes.Value > 1<<20 || w.InodesUsed.GetValue() < 3 || w.Timestamp == 0 || w.FsId.GetMountpoint() == "" {
		t.Errorf("the writable layer is %v", w)
	}
	m := s.Memory
	if ws := m.WorkingSetBytes.GetValue(); ws == 0 || ws > m.UsageBytes.GetValue() || m.AvailableBytes.GetValue() != 64<<20-ws {
		t.Errorf("working set %d of %d used, available %d", ws, m.UsageBytes.GetValue(), m.AvailableBytes.GetValue())
	}
}

func podStats(t *testing.T, n *node.Node, pod string) *runtimeapi.LinuxPodSandboxStats {
	t.Helper()
	r, err := n.Runtime.PodSandboxStats(n.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	return r.Stats.Linux
}

func checkPodStats(t *testing.T, n *node.Node, pod, container string) (cpu uint64) {
	t.Helper()
	s := podStats(t, n, pod)
	if len(s.Containers) != 1 || s.Process.ProcessCount.GetValue() == 0 {
		t.Errorf("%d containers, %v", len(s.Containers), s.Process)
	}
	eth0 := s.Network.GetDefaultInterface()
	if eth0.GetName() != "eth0" || len(s.Network.GetInterfaces()) > 0 {
		t.Fatalf("network %v, want eth0 alone", s.Network)
	}
	for line := range strings.Lines(n.Exec(container, "cat", "/proc/net/dev")) {
		if fields := strings.Fields(line); fields[0] == "eth0:" {
			rx, _ := strconv.ParseUint(fields[1], 10, 64)
			tx, _ := strconv.ParseUint(fields[9], 10, 64)
			if eth0.RxBytes.GetValue() > rx || eth0.TxBytes.GetValue() > tx {
				t.Errorf("eth0 had %v, and then %d and %d", eth0, rx, tx)
			}
			return s.Cpu.UsageCoreNanoSeconds.GetValue()
		}
	}
	t.Error("the container has no eth0")
	return 0
}

func checkMetrics(t *testing.T, n *node.Node, pod, container string) {
	t.Helper()
	r, err := n.Runtime.ListPodSandboxMetrics(n.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.PodMetrics) != 1 || r.PodMetrics[0].PodSandboxId != pod || r.PodMetrics[0].ContainerMetrics[0].ContainerId != container {
		t.Fatalf("metrics of %v", r.PodMetrics)
	}
	have := map[string]uint64{}
	for _, m := range r.PodMetrics[0].ContainerMetrics[0].Metrics {
		have[m.Name] = m.Value.GetValue()
	}
	for _, m := range r.PodMetrics[0].Metrics {
		if strings.HasPrefix(m.Name, "container_network_") {
			have[m.Name] = m.Value.GetValue()
		}
	}
	for name, want := range map[string]uint64{"container_processes": 1, "container_threads": 1, "container_spec_memory_limit_bytes": 64 << 20} {
		if have[name] != want {
			t.Errorf("%s is %d, want %d", name, have[name], want)
		}
	}
	for _, name := range []string{
		"container_memory_usage_bytes", "container_fs_usage_bytes", "container_fs_limit_bytes", "container_start_time_seconds",
		"container_ulimits_soft", "container_file_descriptors", "container_network_transmit_bytes_total",
	} {
		if have[name] == 0 {
			t.Errorf("%s is nothing", name)
		}
	}
}

func TestResizeInPlace(t *testing.T) {
	for _, env := range environments[:2] {
		t.Run(env.name, func(t *testing.T) {
			n := node.Start(t, env.options)
			sandbox := n.Sandbox("resized")
			config := node.Container("main", n.Pull(node.Busybox(t)), "sleep", "100000")
			config.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 256, OomScoreAdj: 500}
			pod, container := n.Launch(sandbox, config)
			t.Cleanup(func() { n.RemovePod(pod) })
			for _, r := range []*runtimeapi.LinuxContainerResources{
				{MemoryLimitInBytes: 96 << 20, CpuQuota: 50000, CpuPeriod: 100000}, {CpusetCpus: "0"},
			} {
				_, err := n.Runtime.UpdateContainerResources(n.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: container, Linux: r})
				if err != nil {
					t.Fatal(err)
				}
			}
			got := n.Container(container).Resources.Linux
			if got.MemoryLimitInBytes != 96<<20 || got.CpuQuota != 50000 || got.CpuShares != 256 || got.CpusetCpus != "0" || got.OomScoreAdj != 500 {
				t.Errorf("the status says %v", got)
			}
			limit := cgroupNumber(t, sandbox.Linux.CgroupParent+"/"+container, "memory.max", "memory", "memory.limit_in_bytes")
			if limit != 96<<20 {
				t.Errorf("the kernel's limit is %d", limit)
			}
			_, err := n.Runtime.UpdatePodSandboxResources(n.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
				PodSandboxId: pod, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 300},
			})
			if err != nil {
				t.Fatal(err)
			}
			verbose, err := n.Runtime.PodSandboxStatus(n.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
			if err != nil || !strings.Contains(fmt.Sprint(verbose.GetInfo()), `"cpuShares":300`) {
				t.Errorf("%v, %v", verbose.GetInfo(), err)
			}
		})
	}
}

func TestEventsOfRealContainers(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	events, err := n.Runtime.GetContainerEvents(n.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = events.Header(); err != nil { // it listens
		t.Fatal(err)
	}
	pod, container := n.Launch(n.Sandbox("short"), node.Container("short", ref, "sh", "-c", "exit 7"))
	n.Ended(container)
	n.RemovePod(pod)
	names := map[string]string{pod: "pod", container: "container"}
	last := int64(0)
	for _, want := range []string{
		"CREATED pod", "STARTED pod", "CREATED container", "STARTED container", "STOPPED container", "STOPPED pod", "DELETED container", "DELETED pod",
	} {
		ev, err := events.Recv()
		if err != nil {
			t.Fatal(err)
		}
		kind := strings.TrimSuffix(strings.TrimPrefix(ev.ContainerEventType.String(), "CONTAINER_"), "_EVENT")
		if got := kind + " " + names[ev.ContainerId]; got != want || ev.CreatedAt <= last || ev.PodSandboxStatus.GetId() != pod {
			t.Fatalf("%s at %d, want %s after %d", got, ev.CreatedAt, want, last)
		}
		if want == "STOPPED container" && ev.ContainersStatuses[0].ExitCode != 7 {
			t.Errorf("the status says %v", ev.ContainersStatuses)
		}
		last = ev.CreatedAt
	}
	began := time.Now()
	n.Stop()
	if _, err := events.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "the server ends") {
		t.Errorf("when the server ends, its listener gets %v", err)
	}
	if took := time.Since(began); took > 8*time.Second { // it gives calls under way ten
		t.Errorf("the server waited %v for a listener", took)
	}
}

// What crictl and gantry show of statistics and events is not only there but of the right thing.
func TestCommandLinesReadStatisticsAndEvents(t *testing.T) {
	n := node.Start(t, node.Options{})
	sandbox := n.Sandbox("shown")
	pod, container := n.Launch(sandbox, node.Container("shown", n.Pull(node.Busybox(t)), "sleep", "100000"))
	t.Cleanup(func() { n.RemovePod(pod) })
	contains(t, "crictl stats", n.Crictl("stats", "-o", "json", container), `"usageCoreNanoSeconds"`)
	contains(t, "crictl stats by pod", n.Crictl("stats", "-o", "json", "-p", pod), container)
	contains(t, "crictl statsp", n.Crictl("statsp", "-o", "json", pod), `"defaultInterface"`)
	contains(t, "crictl metricdescs", n.Crictl("metricdescs"), "container_pressure_io_waiting_seconds_total")
	contains(t, "crictl metricsp", n.Crictl("metricsp"), "container_memory_working_set_bytes")
	update := n.Crictl("update", "--memory", "67108864", container)
	contains(t, "crictl update", update, container)
	contains(t, "crictl inspect", n.Crictl("inspect", container), `"memoryLimitInBytes": "67108864"`)
	events := n.Gantry("events", "--since", "1h", "--follow=false", "lab/shown")
	for _, want := range []string{"created  " + pod[:13] + "  lab/shown  -", "started  " + container[:13] + "  lab/shown  shown"} {
		contains(t, "gantry events", events, want)
	}
}
