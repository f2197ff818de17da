package dockerlog_test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"gantry/internal/labdocker"
	"gantry/internal/pod"
)

// BenchmarkLog measures what 50 MB of lines of 100 bytes cost on the way into a CRI log, by either way,
// and what dockerd's own json-file costs without one.
func BenchmarkLog(b *testing.B) {
	const size = 50_000_000
	script := fmt.Sprintf(`yes %s | head -c %d`, strings.Repeat("x", 99), size)
	for _, way := range []string{"driver", "followed", "json-file"} {
		b.Run(way, func(b *testing.B) {
			bench := newBench(b, labdocker.Options{}, way == "followed")
			daemon, keeper, own := cpu(b, bench.d.Pid()), cpu(b, bench.worker()), cpu(b, os.Getpid())
			b.ResetTimer()
			for i := range b.N {
				if way == "json-file" {
					id := bench.d.Docker("run", "-d", "--network", "none", "--log-driver", way, bench.image, "sh", "-c", script)
					bench.d.Docker("wait", strings.TrimSpace(id))
					continue
				}
				id, path := bench.run(pod.Key(fmt.Sprint("c", i)), bench.image, "sh", "-c", script)
				bench.d.Docker("wait", id)
				bench.eventually("whole log", func() bool {
					info, err := os.Stat(path)
					return err == nil && info.Size() > size
				})
			}
			b.ReportMetric((cpu(b, bench.d.Pid())-daemon)/float64(b.N), "dockerd-cpu-s/op")
			b.ReportMetric((cpu(b, bench.worker())-keeper)/float64(b.N), "keeper-cpu-s/op")
			b.ReportMetric((cpu(b, os.Getpid())-own)/float64(b.N), "server-cpu-s/op")
		})
	}
}

// BenchmarkMemory measures what an idle container's log costs the keeper's worker.
func BenchmarkMemory(b *testing.B) {
	const containers = 20
	bench := newBench(b, labdocker.Options{}, false)
	bench.run("first", bench.image, "sleep", "10000")
	before := pss(b, bench.worker())
	for i := range containers {
		bench.run(pod.Key(fmt.Sprint("c", i)), bench.image, "sleep", "10000")
	}
	b.ReportMetric(before, "worker-KiB")
	b.ReportMetric((pss(b, bench.worker())-before)/containers, "KiB/log")
}

// worker is the pid of the keeper's worker.
func (b *bench) worker() int {
	b.t.Helper()
	pids := b.keepers("--worker")
	if len(pids) == 0 {
		b.t.Fatal("the keeper has no worker")
	}
	return pids[0]
}

// cpu is the time that a process has used, in seconds (proc_pid_stat(5)).
func cpu(t testing.TB, pid int) float64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return float64(user+system) / 100
}

// pss is a process's memory, its share of what is shared, in KiB.
func pss(t testing.TB, pid int) float64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, _ := strconv.Atoi(strings.Fields(value)[0])
			return float64(kib)
		}
	}
	t.Fatal("no Pss")
	return 0
}
