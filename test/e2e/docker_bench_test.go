package e2e_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/labdocker"
	"gantry/test/node"
)

// BenchmarkPodOnDocker is RunPodSandbox, CreateContainer and StartContainer on the CNI bridge plugin, with what of it
// dockerd took, and beside it what Docker takes alone for a container without a network: two of those are in a pod.
func BenchmarkPodOnDocker(b *testing.B) {
	r := newRecorded(b, node.Options{Network: "cni"})
	d, image := r.dockerd, r.image
	b.Run("pod", func(b *testing.B) {
		own := r.For(b)
		var took, inDocker []time.Duration
		for b.Loop() {
			r.requests.Take()
			began := time.Now()
			pod, _ := own.Launch(own.Sandbox("bench"), node.Container("main", image, "sleep", "100000"))
			took = append(took, time.Since(began))
			b.StopTimer()
			var sum time.Duration
			for _, q := range r.requests.Take() {
				sum += q.Took
			}
			inDocker = append(inDocker, sum)
			own.RemovePod(pod)
			b.StartTimer()
		}
		reportMedian(b, took)
		slices.Sort(inDocker)
		b.ReportMetric(inDocker[len(inDocker)/2].Seconds()*1000, "ms-in-dockerd(p50)")
	})
	b.Run("docker run", func(b *testing.B) {
		var took []time.Duration
		for i := 0; b.Loop(); i++ {
			began := time.Now()
			d.Docker("run", "-d", "--name", fmt.Sprintf("plain-%d-%d", b.N, i), "--network", "none", image, "sleep", "100000")
			took = append(took, time.Since(began))
			b.StopTimer()
			d.Docker("rm", "-f", fmt.Sprintf("plain-%d-%d", b.N, i))
			b.StartTimer()
		}
		reportMedian(b, took)
	})
}

// reportMedian reports what a machine with other work to do can tell: means take in its pauses.
func reportMedian(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2].Seconds()*1000, "ms(p50)")
	b.ReportMetric(took[len(took)/10].Seconds()*1000, "ms(p10)")
}

// BenchmarkListsOnDocker is what the kubelet asks again and again, at a hundred pods.
func BenchmarkListsOnDocker(b *testing.B) {
	d := labdocker.Start(b, labdocker.Options{})
	n := node.Start(b, node.Options{Flags: []string{"--engine", "docker", "--docker-endpoint", d.Endpoint()}})
	image := n.Pull(node.Busybox(b))
	var container string
	for i := range 100 {
		_, container = n.Launch(n.Sandbox(fmt.Sprintf("pod-%d", i)), node.Container("main", image, "sleep", "100000"))
	}
	for name, call := range map[string]func() error{
		"ListContainers": func() error {
			_, err := n.Runtime.ListContainers(b.Context(), &runtimeapi.ListContainersRequest{})
			return err
		},
		"ListPodSandbox": func() error {
			_, err := n.Runtime.ListPodSandbox(b.Context(), &runtimeapi.ListPodSandboxRequest{})
			return err
		},
		"ContainerStatus": func() error {
			_, err := n.Runtime.ContainerStatus(b.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: container})
			return err
		},
		"ListPodSandboxStats": func() error {
			_, err := n.Runtime.ListPodSandboxStats(b.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			var took []time.Duration
			for b.Loop() {
				began := time.Now()
				if err := call(); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
			}
			reportMedian(b, took)
		})
	}
	b.Run("idle", func(b *testing.B) {
		holder, worker := n.Keeper()
		pids := map[string]int{"dockerd": d.Pid(), "containerd": d.ContainerdPid(), "gantry": n.Pid(), "holder": holder, "worker": worker}
		before := make(map[string]time.Duration)
		for name, pid := range pids {
			before[name] = cpuTime(b, pid)
		}
		for b.Loop() {
			<-time.After(30 * time.Second)
		}
		for name, pid := range pids {
			b.ReportMetric((cpuTime(b, pid)-before[name]).Seconds()*1000/float64(b.N), name+"-cpu-ms/op")
		}
	})
}

// cpuTime is what a process has used so far: proc_pid_stat(5) counts ticks of ten milliseconds.
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	line := node.ReadFile(b, fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
	var ticks time.Duration
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond
}
