package cgroup_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sync/errgroup"

	"gantry/internal/cgroup"
	"gantry/internal/lab"
	"gantry/internal/pod"
)

// pressure is a file of the kernel's, with a total in microseconds.
func pressure(some, full int) string {
	return fmt.Sprintf("some avg10=1.50 avg60=0.25 avg300=0.05 total=%d\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=%d\n", some, full)
}

// containerV2 are the files of a cgroup as Linux 6.18 shows them, shortened.
func containerV2() map[string]string {
	return map[string]string{
		"cpu.stat":                 "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnice_usec 0\nnr_periods 10\nnr_throttled 4\nthrottled_usec 2000000\n",
		"cpu.pressure":             pressure(300, 100),
		"memory.current":           "10000\n",
		"memory.max":               "20000\n",
		"memory.peak":              "15000\n",
		"memory.swap.current":      "300\n",
		"memory.swap.max":          "1000\n",
		"memory.stat":              "anon 4000\nfile 6000\nkernel 700\nfile_mapped 900\ninactive_file 2500\nactive_file 3500\npgfault 7\npgmajfault 2\n",
		"memory.events":            "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n",
		"memory.pressure":          pressure(30, 10),
		"io.stat":                  "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n253:16 rbytes=1 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n7:0 \n",
		"io.pressure":              pressure(3, 1),
		"pids.current":             "3\n",
		"pids.max":                 "100\n",
		"hugetlb.2MB.current":      "4194304\n",
		"hugetlb.2MB.rsvd.current": "9\n",
		"hugetlb.1GB.current":      "0\n",
		"cgroup.procs":             "1\n",
	}
}

// v2Tree is a hierarchy with the files of containerV2 in every one of the cgroups.
func v2Tree(t testing.TB, cgroups ...string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "cgroup.controllers"), []byte("cpu io memory pids hugetlb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range cgroups {
		if err := os.MkdirAll(filepath.Join(root, c), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, content := range containerV2() {
			if err := os.WriteFile(filepath.Join(root, c, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func TestReadMetricsV2(t *testing.T) {
	f := open(t, v2Tree(t, "p/c"))
	swap := uint64(1000)
	stall := func(some, full time.Duration) *pod.Stall {
		return &pod.Stall{
			Some: pod.StallTime{Total: some * time.Microsecond, Avg10: 1.5, Avg60: 0.25, Avg300: 0.05},
			Full: pod.StallTime{Total: full * time.Microsecond, Avg10: 0.5},
		}
	}
	want := &pod.Metrics{
		Stats: pod.Stats{
			CPUUsage: 1500 * time.Millisecond, MemoryUsage: 10000, MemoryWorkingSet: 7500, MemoryRSS: 4000, MemoryLimit: 20000,
			PageFaults: 7, MajorPageFaults: 2, SwapUsage: 300, SwapLimit: &swap, Processes: 3,
			CPUStall: stall(300, 100), MemoryStall: stall(30, 10), IOStall: stall(3, 1),
		},
		CPUUser: time.Second, CPUSystem: 500 * time.Millisecond,
		Throttle:    pod.Throttle{Periods: 10, Throttled: 4, Time: 2 * time.Second},
		MemoryCache: 6000, MemoryKernel: 700, MemoryMapped: 900, MemoryPeak: 15000, MemoryFailures: 12,
		ActiveFile: 3500, InactiveFile: 2500, OOMKills: 1,
		HugePages: []pod.HugePageUsage{{Size: "1GB"}, {Size: "2MB", Usage: 4 << 20}},
		Devices: []pod.DeviceUsage{
			{Major: 8, ReadBytes: 4096, WriteBytes: 8192, Reads: 1, Writes: 2}, {Major: 253, Minor: 16, ReadBytes: 1, Reads: 1}, {Major: 7},
		},
	}
	got, err := f.ReadMetrics("/p/c")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(pod.Stats{}, "At")); diff != "" {
		t.Error(diff)
	}
	stats, err := f.Read("/p/c")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&want.Stats, stats, cmpopts.IgnoreFields(pod.Stats{}, "At")); diff != "" {
		t.Error(diff)
	}
	if n := f.MaxTasks("/p/c"); n != 100 {
		t.Errorf("at most %d tasks", n)
	}
}

func TestReadMetricsV1(t *testing.T) {
	f := open(t, tree(t, map[string]string{
		"cpu/cgroup.procs": "", "cpuacct/cgroup.procs": "", "memory/cgroup.procs": "", "blkio/cgroup.procs": "", "pids/cgroup.procs": "",
		"unified/cgroup.procs": "", "unified/cgroup.controllers": "hugetlb\n",
		"cpuacct/p/cpuacct.usage":                           "2500\n",
		"cpuacct/p/cpuacct.stat":                            "user 150\nsystem 50\n",
		"cpu/p/cpu.stat":                                    "nr_periods 3\nnr_throttled 2\nthrottled_time 1000\n",
		"memory/p/memory.usage_in_bytes":                    "9000\n",
		"memory/p/memory.limit_in_bytes":                    "10000\n",
		"memory/p/memory.memsw.limit_in_bytes":              "12000\n",
		"memory/p/memory.max_usage_in_bytes":                "9500\n",
		"memory/p/memory.failcnt":                           "4\n",
		"memory/p/memory.kmem.usage_in_bytes":               "40\n",
		"memory/p/memory.oom_control":                       "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
		"memory/p/memory.stat":                              "cache 1\ntotal_cache 60\ntotal_mapped_file 7\ntotal_active_file 8\ntotal_inactive_file 4000\n",
		"blkio/p/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 512\n8:0 Sync 0\n8:0 Total 4608\nTotal 4608\n",
		"blkio/p/blkio.throttle.io_serviced_recursive":      "8:0 Read 2\n8:0 Write 1\nTotal 3\n",
		"unified/p/hugetlb.2MB.current":                     "2097152\n",
		"pids/p/pids.max":                                   "max\n",
	}))
	swap := uint64(2000)
	want := &pod.Metrics{
		Stats:   pod.Stats{CPUUsage: 2500, MemoryUsage: 9000, MemoryWorkingSet: 5000, MemoryLimit: 10000, SwapLimit: &swap},
		CPUUser: 1500 * time.Millisecond, CPUSystem: 500 * time.Millisecond,
		Throttle:    pod.Throttle{Periods: 3, Throttled: 2, Time: 1000},
		MemoryCache: 60, MemoryKernel: 40, MemoryMapped: 7, MemoryPeak: 9500, MemoryFailures: 4, ActiveFile: 8, InactiveFile: 4000, OOMKills: 2,
		HugePages: []pod.HugePageUsage{{Size: "2MB", Usage: 2 << 20}},
		Devices:   []pod.DeviceUsage{{Major: 8, ReadBytes: 4096, WriteBytes: 512, Reads: 2, Writes: 1}},
	}
	got, err := f.ReadMetrics("/p")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(pod.Stats{}, "At")); diff != "" {
		t.Error(diff)
	}
	if n := f.MaxTasks("/p"); n != 0 {
		t.Errorf("at most %d tasks without a limit", n)
	}
}

// What is read agrees with what the node's own files say of processes that are really there.
func TestReadMetricsOnTheNode(t *testing.T) {
	f := open(t, cgroup.DefaultRoot)
	path := lab.Cgroup(t)
	if err := f.Create(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Remove(context.Background(), path) })
	busy(t, cgroup.DefaultRoot, path)
	got, err := f.ReadMetrics(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.CPUUsage <= 0 || got.MemoryUsage == 0 || got.Processes != 2 || got.MemoryPeak < got.MemoryUsage {
		t.Errorf("a shell and its child use %+v", got)
	}
	for _, file := range []string{"memory/" + path + "/memory.usage_in_bytes", path + "/memory.current"} {
		data, err := os.ReadFile(filepath.Join(cgroup.DefaultRoot, file))
		if err != nil {
			continue
		}
		want, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		const slack = 1 << 20 // the kernel charges in batches
		if got.MemoryUsage > want+slack || got.MemoryUsage+slack < want {
			t.Errorf("memory %d, the file says %d", got.MemoryUsage, want)
		}
	}
}

func BenchmarkRead100PodsV2(b *testing.B) {
	var cgroups []string
	for i := range 100 {
		p := fmt.Sprintf("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod%036d.slice", i)
		cgroups = append(cgroups, p, fmt.Sprintf("%s/gantry-%064d.scope", p, i))
	}
	f, err := cgroup.Open(v2Tree(b, cgroups...))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, c := range cgroups {
			if _, err := f.Read("/" + c); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// Files that are still open from the last reading show neither what is gone nor what it once used.
func TestReadOfACgroupThatIsMadeAgain(t *testing.T) {
	f := open(t, cgroup.DefaultRoot)
	path := lab.Cgroup(t)
	t.Cleanup(func() { _ = f.Remove(context.Background(), path) })
	for range 3 {
		if err := f.Create(path); err != nil {
			t.Fatal(err)
		}
		s, err := f.Read(path)
		if err != nil || s.Processes != 0 || s.CPUUsage != 0 {
			t.Fatalf("a new cgroup uses %+v, %v", s, err)
		}
		busy(t, cgroup.DefaultRoot, path)
		if s, err = f.Read(path); err != nil || s.Processes == 0 || s.CPUUsage == 0 {
			t.Fatalf("a busy cgroup uses %+v, %v", s, err)
		}
		if err = f.Remove(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		if s, err = f.Read(path); !errdefs.IsNotFound(err) {
			t.Fatalf("a cgroup that is gone uses %+v, %v", s, err)
		}
	}
}

// One that is read at once by many is read by each as if it were alone.
func TestReadByMany(t *testing.T) {
	f := open(t, v2Tree(t, "p/c"))
	want, err := f.Read("/p/c")
	if err != nil {
		t.Fatal(err)
	}
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			for range 200 {
				got, failed := f.Read("/p/c")
				if failed != nil {
					return failed
				}
				if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(pod.Stats{}, "At")); diff != "" {
					return errors.New(diff)
				}
			}
			return nil
		})
	}
	if err = g.Wait(); err != nil {
		t.Error(err)
	}
}
