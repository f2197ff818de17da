package cluster_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
)

// cadvisorMetrics reads what a monitoring system scrapes from the kubelet.
func cadvisorMetrics(s *suite) {
	s.apply(sleeper)
	s.ready("pod")
	s.eventually("the pod's metrics", func(ctx context.Context) error {
		data, err := s.Client.CoreV1().RESTClient().Get().Resource("nodes").Name(s.Nodes[0].Name).SubResource("proxy", "metrics", "cadvisor").DoRaw(ctx)
		if err != nil {
			return err
		}
		for _, name := range []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_network_receive_bytes_total", "container_fs_usage_bytes"} {
			if !hasMetric(string(data), name, s.namespace) {
				return fmt.Errorf("no %s of the pod", name)
			}
		}
		return nil
	})
}

func hasMetric(text, name, namespace string) bool {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, name+"{") && strings.Contains(line, fmt.Sprintf("namespace=%q", namespace)) {
			return true
		}
	}
	return false
}

// meminfo returns a value of the machine, in bytes.
func meminfo(t testing.TB, name string) (bytes int64) {
	t.Helper()
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if _, err := fmt.Sscanf(line, name+": %d kB", &bytes); err == nil {
			return bytes << 10
		}
	}
	t.Fatalf("/proc/meminfo has no %s", name)
	return 0
}

// refusedCheckpoint asks the kubelet for a checkpoint, which no OCI runtime of this machine can make.
func refusedCheckpoint(s *suite) {
	s.apply(sleeper)
	s.ready("pod")
	err := s.Client.CoreV1().RESTClient().Post().AbsPath("/api/v1/nodes/" + s.Nodes[0].Name + "/proxy/checkpoint/" + s.namespace + "/pod/main").
		Do(s.t.Context()).Error()
	if err == nil || !strings.Contains(strings.ToLower(err.Error()), "checkpoint") {
		s.t.Errorf("the answer is %v", err)
	}
	if p := s.ready("pod"); restarts(p) != 0 {
		s.t.Error("the container restarted")
	}
}
