package cluster_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"gantry/internal/labimage"
	"gantry/test/cluster/kube"
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

func acrossNodes(t *testing.T, c *kube.Cluster) {
	check(t, c, "a pod reaches one of another node, by its address and by a service", func(s *suite) {
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: $WEB, readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 8080, targetPort: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: $BUSYBOX, command: [sleep, "1000"]}]
`)
		s.ready("web")
		s.ready("client")
		service := strings.TrimSpace(s.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
		for address, port := range map[string]int{s.ip("web"): 80, service: 8080} {
			s.eventually("the page at "+address, func(ctx context.Context) error {
				out, err := s.TryKubectl(ctx, "", "-n", s.namespace, "exec", "client", "--", "sh", "-c", get(address, port))
				if err == nil && !strings.Contains(out, labimage.Page) {
					err = fmt.Errorf("answer %q", out)
				}
				return err
			})
		}
	})
	check(t, c, "a DaemonSet runs on both", daemonSet)
}
