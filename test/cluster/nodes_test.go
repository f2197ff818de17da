package cluster_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"gantry/internal/labimage"
	"gantry/test/cluster/kube"
)

func acrossNodes(t *testing.T, c *kube.Cluster) {
	for _, from := range c.Nodes[1:] {
		check(t, c, "a pod on "+from.Name+" reaches one on node1, by its address and by a service", func(s *suite) { s.reaches(from.Name) })
	}
	check(t, c, "a DaemonSet runs on all", daemonSet)
}

// reaches asks a web server on the first node from another.
func (s *suite) reaches(from string) {
	s.apply(expand(`
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
  nodeName: $FROM
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: $BUSYBOX, command: [sleep, "1000"]}]
`, "$FROM", from))
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
}

// movesOn drains a node that has some of a Deployment's pods.
func movesOn(s *suite) {
	last := s.Nodes[len(s.Nodes)-1]
	s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}, nodeTaintsPolicy: Honor}]
      containers: [{name: web, image: $WEB, readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}}]
`)
	s.kubectl("rollout", "status", "deployment/web", "--timeout=170s")
	if on := s.nodesOf("app=web"); len(on) != len(s.Nodes) {
		s.t.Errorf("three pods are on %v", on)
	}
	s.Kubectl(s.t, "drain", last.Name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=170s")
	s.kubectl("rollout", "status", "deployment/web", "--timeout=170s")
	if on := s.nodesOf("app=web"); on[last.Name] != 0 || len(on) != len(s.Nodes)-1 {
		s.t.Errorf("after %s was drained the pods are on %v", last.Name, on)
	}
	s.Kubectl(s.t, "uncordon", last.Name)
}

// nodesOf counts pods that are not on their way out by their node.
func (s *suite) nodesOf(selector string) map[string]int {
	s.t.Helper()
	on := map[string]int{}
	for _, p := range s.pods(selector) {
		if p.DeletionTimestamp == nil {
			on[p.Spec.NodeName]++
		}
	}
	return on
}
