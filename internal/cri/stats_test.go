package cri_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/pod"
)

// containerUsage is what the container c1 of node uses.
func containerUsage(at time.Time) *pod.Metrics {
	rate, swap := uint64(250e6), uint64(30)
	stall := &pod.Stall{Some: pod.StallTime{Total: 3 * time.Second, Avg10: 1.5}, Full: pod.StallTime{Total: time.Second, Avg300: 0.25}}
	return &pod.Metrics{
		Stats: pod.Stats{
			At: at, CPUUsage: 5 * time.Second, CPURate: &rate, MemoryUsage: 100, MemoryWorkingSet: 60, MemoryRSS: 50, MemoryLimit: 200,
			PageFaults: 7, MajorPageFaults: 2, SwapUsage: 10, SwapLimit: &swap, Processes: 3,
			CPUStall: stall, MemoryStall: stall, IOStall: stall,
			Layer: &pod.Usage{Mountpoint: "/layers", At: at.Add(-time.Minute), Bytes: 4096, Inodes: 2},
		},
		CPUUser: 3 * time.Second, OOMKills: 1, HugePages: []pod.HugePageUsage{{Size: "2MB", Usage: 2 << 20}},
		Devices:    []pod.DeviceUsage{{Major: 8, Minor: 1, ReadBytes: 512, Writes: 4}},
		Tasks:      &pod.Tasks{Processes: 2, Threads: 3, Descriptors: 9, Sockets: 1, OpenFilesMax: 1024, States: pod.TaskStates{Sleeping: 2}},
		Filesystem: &pod.Filesystem{Bytes: 1 << 30, Inodes: 100, InodesFree: 40},
	}
}

// podUsage is what the sandbox aa11 of node uses: more than its running container, which another preceded.
func podUsage(at time.Time) *pod.Metrics {
	return &pod.Metrics{Stats: pod.Stats{At: at, CPUUsage: 9 * time.Second, Processes: 3, Network: &pod.NetworkUsage{At: at, Interfaces: []pod.InterfaceUsage{
		{Name: "net1", RxBytes: 1}, {Name: "eth0", RxBytes: 2, RxErrors: 3, RxPackets: 4, TxBytes: 5, TxErrors: 6},
	}}}}
}

func wrap(n uint64) *runtime.UInt64Value { return &runtime.UInt64Value{Value: n} }

func TestContainerStats(t *testing.T) {
	s := service(node())
	got, err := s.ContainerStats(t.Context(), &runtime.ContainerStatsRequest{ContainerId: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	psi := &runtime.PsiStats{Some: &runtime.PsiData{Total: 3e9, Avg10: 1.5}, Full: &runtime.PsiData{Total: 1e9, Avg300: 0.25}}
	want := &runtime.ContainerStats{
		Attributes: &runtime.ContainerAttributes{Id: "c1", Metadata: &runtime.ContainerMetadata{Name: "c-c1"}, Labels: map[string]string{"id": "c1"}},
		Cpu:        &runtime.CpuUsage{Timestamp: 100e9, UsageCoreNanoSeconds: wrap(5e9), UsageNanoCores: wrap(250e6), Psi: psi},
		Memory: &runtime.MemoryUsage{
			Timestamp: 100e9, WorkingSetBytes: wrap(60), AvailableBytes: wrap(140), UsageBytes: wrap(100), RssBytes: wrap(50),
			PageFaults: wrap(7), MajorPageFaults: wrap(2), Psi: psi,
		},
		WritableLayer: &runtime.FilesystemUsage{
			Timestamp: 40e9, FsId: &runtime.FilesystemIdentifier{Mountpoint: "/layers"}, UsedBytes: wrap(4096), InodesUsed: wrap(2),
		},
		Swap: &runtime.SwapUsage{Timestamp: 100e9, SwapUsageBytes: wrap(10), SwapAvailableBytes: wrap(20)},
		Io:   &runtime.IoUsage{Timestamp: 100e9, Psi: psi},
	}
	if d := cmp.Diff(want, got.GetStats(), protocmp.Transform()); d != "" {
		t.Error(d)
	}
	if _, err := s.ContainerStats(t.Context(), &runtime.ContainerStatsRequest{ContainerId: "c2"}); !errdefs.IsNotFound(err) {
		t.Errorf("statistics of an ended container: %v", err)
	}
}

// What the kernel does not account is absent, not zero, where zero would say something.
func TestContainerStatsWithoutWhatIsNotAccounted(t *testing.T) {
	m := node()
	m.stats["c1"] = &pod.Metrics{Stats: pod.Stats{At: time.Unix(1, 0)}}
	got, err := service(m).ContainerStats(t.Context(), &runtime.ContainerStatsRequest{ContainerId: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	st := got.GetStats()
	if st.Cpu.UsageNanoCores != nil || st.Cpu.Psi != nil || st.Memory.AvailableBytes != nil || st.Memory.Psi != nil ||
		st.Io != nil || st.WritableLayer != nil || st.Swap.SwapAvailableBytes != nil {
		t.Errorf("got %v", st)
	}
	if st.Cpu.GetUsageCoreNanoSeconds() == nil || st.Memory.GetWorkingSetBytes() == nil {
		t.Errorf("the kubelet needs usage and working set: %v", st)
	}
}

func TestListContainerStatsFilters(t *testing.T) {
	type filter = runtime.ContainerStatsFilter
	for _, c := range []struct {
		rule   string
		filter *filter
		want   int
	}{
		{"the running ones alone", nil, 1},
		{"by the beginning of an id", &filter{Id: "c"}, 1},
		{"by sandbox", &filter{PodSandboxId: "bb22"}, 0},
		{"by label", &filter{LabelSelector: map[string]string{"id": "c1"}}, 1},
		{"by a label that is absent", &filter{LabelSelector: map[string]string{"id": "x"}}, 0},
	} {
		t.Run(c.rule, func(t *testing.T) {
			res, err := service(node()).ListContainerStats(t.Context(), &runtime.ListContainerStatsRequest{Filter: c.filter})
			if err != nil || len(res.GetStats()) != c.want {
				t.Errorf("%d, %v", len(res.GetStats()), err)
			}
		})
	}
}

func TestPodSandboxStats(t *testing.T) {
	s := service(node())
	one, err := s.PodSandboxStats(t.Context(), &runtime.PodSandboxStatsRequest{PodSandboxId: "aa"})
	if err != nil {
		t.Fatal(err)
	}
	linux := one.GetStats().GetLinux()
	if linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() != 9e9 || linux.GetProcess().GetProcessCount().GetValue() != 3 || len(linux.GetContainers()) != 1 {
		t.Errorf("want the pod's own figures and one container: %v", linux)
	}
	want := &runtime.NetworkUsage{
		Timestamp: 100e9,
		DefaultInterface: &runtime.NetworkInterfaceUsage{
			Name: "eth0", RxBytes: wrap(2), RxErrors: wrap(3), TxBytes: wrap(5), TxErrors: wrap(6),
		},
		Interfaces: []*runtime.NetworkInterfaceUsage{{Name: "net1", RxBytes: wrap(1), RxErrors: wrap(0), TxBytes: wrap(0), TxErrors: wrap(0)}},
	}
	if d := cmp.Diff(want, linux.GetNetwork(), protocmp.Transform()); d != "" {
		t.Error(d)
	}
	list, err := s.ListPodSandboxStats(t.Context(), &runtime.ListPodSandboxStatsRequest{})
	if err != nil || len(list.GetStats()) != 1 {
		t.Fatalf("%v, %v, want the ready pod alone", list, err)
	}
	if d := cmp.Diff(one.GetStats(), list.GetStats()[0], protocmp.Transform()); d != "" {
		t.Errorf("the list differs: %s", d)
	}
	none, err := s.ListPodSandboxStats(t.Context(), &runtime.ListPodSandboxStatsRequest{
		Filter: &runtime.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "db"}},
	})
	if err != nil || len(none.GetStats()) != 0 {
		t.Errorf("by a label of a pod that is not ready: %v, %v", none, err)
	}
}

func TestMetricsKeepTheirDescriptors(t *testing.T) {
	s := service(node())
	described, err := s.ListMetricDescriptors(t.Context(), &runtime.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string][]string{}
	for _, d := range described.GetDescriptors() {
		if labels[d.GetName()] != nil {
			t.Errorf("%s is described twice", d.GetName())
		}
		if d.GetHelp() == "" {
			t.Errorf("%s has no help", d.GetName())
		}
		labels[d.GetName()] = d.GetLabelKeys()
	}
	list, err := s.ListPodSandboxMetrics(t.Context(), &runtime.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.GetPodMetrics()) != 1 || len(list.GetPodMetrics()[0].GetContainerMetrics()) != 1 {
		t.Fatalf("want the ready pod and its running container: %v", list)
	}
	ofPod := list.GetPodMetrics()[0]
	series := map[string]uint64{}
	for _, m := range slices.Concat(ofPod.GetMetrics(), ofPod.GetContainerMetrics()[0].GetMetrics()) {
		keys := labels[m.GetName()]
		if len(keys) != len(m.GetLabelValues()) {
			t.Fatalf("%s: labels %q for keys %q", m.GetName(), m.GetLabelValues(), keys)
		}
		name := m.GetName() + "{" + strings.Join(m.GetLabelValues(), ",") + "}"
		if _, twice := series[name]; twice {
			t.Errorf("%s is there twice", name)
		}
		series[name] = m.GetValue().GetValue()
	}
	const container, whole = "c1,c-c1,example.org/app:1,c-c1,web,default", "aa11,POD,,,web,default"
	for name, want := range map[string]uint64{
		"container_cpu_usage_seconds_total{" + container + ",total}":              5,
		"container_cpu_usage_seconds_total{" + whole + ",total}":                  9,
		"container_cpu_user_seconds_total{" + container + "}":                     3,
		"container_memory_working_set_bytes{" + container + "}":                   60,
		"container_memory_failures_total{" + container + ",pgmajfault,container}": 2,
		"container_oom_events_total{" + container + "}":                           1,
		"container_hugetlb_usage_bytes{" + container + ",2MB}":                    2 << 20,
		"container_pressure_io_waiting_seconds_total{" + container + "}":          3,
		"container_pressure_cpu_stalled_seconds_total{" + container + "}":         1,
		"container_fs_usage_bytes{" + container + ",/layers}":                     4096,
		"container_fs_inodes_free{" + container + ",/layers}":                     40,
		"container_fs_reads_bytes_total{" + container + ",8:1}":                   512,
		"container_blkio_device_usage_total{" + container + ",8:1,8,1,read}":      512,
		"container_network_receive_packets_total{" + whole + ",eth0}":             4,
		"container_processes{" + container + "}":                                  2,
		"container_ulimits_soft{" + container + ",max_open_files}":                1024,
		"container_tasks_state{" + container + ",sleeping}":                       2,
		"container_spec_cpu_shares{" + container + "}":                            512,
		"container_start_time_seconds{" + container + "}":                         101,
		"container_memory_failures_total{" + whole + ",pgfault,hierarchy}":        0,
	} {
		if got, ok := series[name]; !ok || got != want {
			t.Errorf("%s is %d, there: %v, want %d", name, got, ok, want)
		}
	}
	for name := range series {
		base, _, _ := strings.Cut(name, "{")
		delete(labels, base)
	}
	if len(labels) > 0 {
		t.Errorf("described and never given: %v", labels)
	}
}

// The Stream* forms say what the lists say.
func TestStreamedStatistics(t *testing.T) {
	conn, _ := serve(t, node(), cri.Interceptors{})
	client := runtime.NewRuntimeServiceClient(conn)
	stats, err := client.StreamContainerStats(t.Context(), &runtime.StreamContainerStatsRequest{})
	wantOne(t, err, func() (int, error) { r, e := stats.Recv(); return len(r.GetContainerStats()), e })
	pods, err := client.StreamPodSandboxStats(t.Context(), &runtime.StreamPodSandboxStatsRequest{})
	wantOne(t, err, func() (int, error) { r, e := pods.Recv(); return len(r.GetPodSandboxStats()), e })
	metrics, err := client.StreamPodSandboxMetrics(t.Context(), &runtime.StreamPodSandboxMetricsRequest{})
	wantOne(t, err, func() (int, error) { r, e := metrics.Recv(); return len(r.GetPodSandboxMetrics()), e })
}

func wantOne(t *testing.T, err error, recv func() (int, error)) {
	t.Helper()
	total := 0
	for err == nil {
		var n int
		n, err = recv()
		total += n
	}
	if total != 1 || !errors.Is(err, io.EOF) {
		t.Errorf("%d items, then %v", total, err)
	}
}

func TestUpdatePodSandboxResources(t *testing.T) {
	m := node()
	s := service(m)
	_, err := s.UpdatePodSandboxResources(t.Context(), &runtime.UpdatePodSandboxResourcesRequest{
		PodSandboxId: "aa11", Overhead: &runtime.LinuxContainerResources{CpuShares: 2}, Resources: &runtime.LinuxContainerResources{MemoryLimitInBytes: 3},
	})
	if err != nil || m.updated != "aa11" || m.overhead.CPUShares != 2 || m.update.MemoryLimit != 3 {
		t.Errorf("%v: %s has %+v %+v", err, m.updated, m.overhead, m.update)
	}
	if _, err := s.UpdatePodSandboxResources(t.Context(), &runtime.UpdatePodSandboxResourcesRequest{PodSandboxId: "aa11"}); err != nil || m.overhead != nil || m.update != nil {
		t.Errorf("an update of nothing: %v, %v, %v", err, m.overhead, m.update)
	}
	for field, req := range map[string]*runtime.UpdatePodSandboxResourcesRequest{
		"pod_sandbox_id":        {},
		"overhead.cpu_period":   {PodSandboxId: "aa11", Overhead: &runtime.LinuxContainerResources{CpuPeriod: -1}},
		"resources.cpuset_cpus": {PodSandboxId: "aa11", Resources: &runtime.LinuxContainerResources{CpusetCpus: "all"}},
	} {
		if _, err := s.UpdatePodSandboxResources(t.Context(), req); !errdefs.IsInvalidArgument(err) || !strings.Contains(fmt.Sprint(err), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
