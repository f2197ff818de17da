package cgroup2_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestStatistics compares what the server says of a container and of its pod with the kernel's files,
// read before and after.
func TestStatistics(t *testing.T) {
	for _, s := range setups[:2] {
		t.Run(s.String(), func(t *testing.T) {
			l := s.launch(t, s.serve(t), "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/data bs=64k count=64 2>&1; echo idle; sleep 100000 & wait", smallMemory)
			l.Eventually("the container is idle", func() bool {
				return strings.Contains(l.ReadLog(l.container), "idle") && number(t, l.cgroup, "pids.current") == 2
			})
			st, got := l.betweenTheKernels(t)
			if limit := st.Memory.GetAvailableBytes().GetValue(); s.processCgroup("") == "" && limit != 24<<20-got.workingSet {
				t.Errorf("available bytes %d with a limit of %d and a working set of %d", limit, 24<<20, got.workingSet)
			}
			if got.cpuStall == 0 {
				t.Error("no pressure at all on a container that was busy")
			}
			p, err := l.Runtime.PodSandboxStats(l.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: l.pod})
			if err != nil {
				t.Fatal(err)
			}
			parent := l.cgroup[:strings.LastIndexByte(l.cgroup, '/')]
			linux := p.Stats.GetLinux()
			if n, want := linux.GetProcess().GetProcessCount().GetValue(), number(t, parent, "pids.current"); n != want {
				t.Errorf("the pod has %d processes, the kernel counts %d", n, want)
			}
			if cpu := linux.GetCpu().GetUsageCoreNanoSeconds().GetValue(); cpu < got.cpu || cpu > 1000*value(t, parent, "cpu.stat", "usage_usec") {
				t.Errorf("the pod used %d ns of CPU, its container %d, the kernel counts %d µs", cpu, got.cpu, value(t, parent, "cpu.stat", "usage_usec"))
			}
			if net := linux.GetNetwork().GetDefaultInterface(); net.GetName() != "eth0" {
				t.Errorf("default interface %v", net)
			}
			if len(linux.GetContainers()) != 1 {
				t.Errorf("%d containers", len(linux.GetContainers()))
			}
		})
	}
}

// usage is what is compared: bytes, nanoseconds and counts.
type usage struct {
	cpu, memory, workingSet, rss, faults, majorFaults uint64
	cpuStall, memoryStall, ioStall                    uint64
}

func kernelSays(t *testing.T, path string) usage {
	t.Helper()
	memory := number(t, path, "memory.current")
	return usage{
		cpu: 1000 * value(t, path, "cpu.stat", "usage_usec"), memory: memory,
		workingSet: memory - value(t, path, "memory.stat", "inactive_file"), rss: value(t, path, "memory.stat", "anon"),
		faults: value(t, path, "memory.stat", "pgfault"), majorFaults: value(t, path, "memory.stat", "pgmajfault"),
		cpuStall: stall(t, path, "cpu.pressure", "some"), memoryStall: stall(t, path, "memory.pressure", "full"), ioStall: stall(t, path, "io.pressure", "some"),
	}
}

// stall is the total of a line of a pressure file, in nanoseconds as the CRI has it.
func stall(t *testing.T, path, name, kind string) uint64 {
	t.Helper()
	for line := range strings.Lines(file(t, path, name)) {
		if strings.HasPrefix(line, kind+" ") {
			_, total, _ := strings.Cut(strings.TrimSpace(line), "total=")
			n, err := strconv.ParseUint(total, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return 1000 * n // the kernel counts microseconds
		}
	}
	t.Fatalf("%s of %s has no %s", name, path, kind)
	return 0
}

// betweenTheKernels returns what the server says, which must be between what the kernel says before and after.
// A figure that goes up and down, as memory that is reclaimed, can be outside of both: one time out of a few
// it is not.
func (l *launched) betweenTheKernels(t *testing.T) (st *runtimeapi.ContainerStats, got usage) {
	t.Helper()
	var outside []string
	for range 5 {
		before := kernelSays(t, l.cgroup)
		st, got = l.serverSays(t)
		after := kernelSays(t, l.cgroup)
		t.Logf("before %+v\ngot %+v\nafter %+v", before, got, after)
		if outside = between(before, got, after); len(outside) == 0 {
			break
		}
	}
	for _, what := range outside {
		t.Error(what)
	}
	return st, got
}

func (l *launched) serverSays(t *testing.T) (*runtimeapi.ContainerStats, usage) {
	t.Helper()
	r, err := l.Runtime.ContainerStats(l.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: l.container})
	if err != nil {
		t.Fatal(err)
	}
	st := r.Stats
	return st, usage{
		cpu: st.Cpu.GetUsageCoreNanoSeconds().GetValue(), memory: st.Memory.GetUsageBytes().GetValue(),
		workingSet: st.Memory.GetWorkingSetBytes().GetValue(), rss: st.Memory.GetRssBytes().GetValue(),
		faults: st.Memory.GetPageFaults().GetValue(), majorFaults: st.Memory.GetMajorPageFaults().GetValue(),
		cpuStall: st.Cpu.GetPsi().GetSome().GetTotal(), memoryStall: st.Memory.GetPsi().GetFull().GetTotal(), ioStall: st.Io.GetPsi().GetSome().GetTotal(),
	}
}

// between returns what is outside.
func between(before, got, after usage) (outside []string) {
	for what, v := range map[string][3]uint64{
		"cpu": {before.cpu, got.cpu, after.cpu}, "memory": {before.memory, got.memory, after.memory},
		"working set": {before.workingSet, got.workingSet, after.workingSet}, "rss": {before.rss, got.rss, after.rss},
		"page faults": {before.faults, got.faults, after.faults}, "major page faults": {before.majorFaults, got.majorFaults, after.majorFaults},
		"CPU pressure": {before.cpuStall, got.cpuStall, after.cpuStall}, "memory pressure": {before.memoryStall, got.memoryStall, after.memoryStall},
		"io pressure": {before.ioStall, got.ioStall, after.ioStall},
	} {
		if v[1] < min(v[0], v[2]) || v[1] > max(v[0], v[2]) {
			outside = append(outside, fmt.Sprintf("%s: %d, the kernel had %d before and %d after", what, v[1], v[0], v[2]))
		}
	}
	return outside
}
