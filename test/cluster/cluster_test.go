// Package cluster_test runs an unmodified Kubernetes on gantry and checks what its users would notice.
package cluster_test

import (
	"testing"

	"gantry/internal/lab"
	"gantry/test/cluster/kube"
)

func TestMain(m *testing.M) { lab.Main(m) }

const runtimeClasses = `
{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: crun}, handler: crun}
---
{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: runc}, handler: runc}
---
{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: heavy}, handler: crun, overhead: {podFixed: {memory: 16Mi, cpu: 10m}}}
`

// TestSuite runs every check on one node.
func TestSuite(t *testing.T) {
	c := kube.Start(t, kube.Options{})
	if _, err := c.TryKubectl(t.Context(), runtimeClasses, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	t.Run("side by side", func(t *testing.T) {
		podsThatCheckThemselves(t, c)
		probes(t, c)
		termination(t, c)
		logs(t, c)
		streams(t, c)
		workloads(t, c)
		resources(t, c)
	})
	disruptions(t, c)
}
