package stats_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"gantry/internal/cgroup"
	"gantry/internal/pod"
	"gantry/internal/stats"
)

// Benchmark100Pods is what ListPodSandboxStats reads: a pod's cgroup and a container's, on cgroup v2.
func Benchmark100Pods(b *testing.B) {
	root := b.TempDir()
	files := map[string]string{
		"cpu.stat": "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n", "memory.current": "10000\n", "memory.max": "max\n",
		"memory.stat":         "anon 4000\nfile 6000\nkernel 700\ninactive_file 2500\npgfault 7\npgmajfault 2\n",
		"memory.swap.current": "0\n", "memory.swap.max": "max\n", "pids.current": "3\n",
		"cpu.pressure":    "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
		"memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
		"io.pressure":     "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
	}
	put := func(name, content string) {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	put(filepath.Join(root, "cgroup.controllers"), "cpu memory pids io\n")
	var containers []*pod.Container
	for i := range 100 {
		c := &pod.Container{CgroupPath: fmt.Sprintf("/kubepods/burstable/pod%036d/%064d", i, i)}
		containers = append(containers, c)
		for name, content := range files {
			put(filepath.Join(root, c.CgroupPath, name), content)
			put(filepath.Join(root, filepath.Dir(c.CgroupPath), name), content)
		}
	}
	cgroups, err := cgroup.Open(root)
	if err != nil {
		b.Fatal(err)
	}
	r := stats.New(cgroups, nil)
	for b.Loop() {
		for _, c := range containers {
			if _, err := r.Container(c); err != nil {
				b.Fatal(err)
			}
			if _, err := r.Cgroup(filepath.Dir(c.CgroupPath)); err != nil {
				b.Fatal(err)
			}
		}
	}
}
