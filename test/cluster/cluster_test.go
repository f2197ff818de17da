// Package cluster_test runs an unmodified Kubernetes on gantry and checks what its users would notice.
package cluster_test

import (
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
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

// TestSuite runs every check on one node, whose pods run on the engine that ENGINE names.
func TestSuite(t *testing.T) {
	journal := newJournal(t)
	engine := os.Getenv("ENGINE")
	switch engine {
	case "", "native":
	case "docker":
		readRefusals(t)
	default:
		t.Fatalf("ENGINE=%s: must be native or docker", engine)
	}
	c := kube.Start(t, kube.Options{Engine: engine})
	c.StartMetrics()
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
		images(t, c)
		refusalsAreMet(t)
	})
	journal.check(t, c, false)
	disruptions(t, c)
	journal.check(t, c, true)
}

// TestGates runs what the kubelet does otherwise with the features that ask most of a runtime.
func TestGates(t *testing.T) {
	c := kube.Start(t, kube.Options{Gates: map[string]bool{
		"EventedPLEG": true, "PodAndContainerStatsFromCRI": true, "CRIListStreaming": true, "ContainerCheckpoint": true,
	}})
	t.Run("side by side", func(t *testing.T) {
		check(t, c, "the summary has CPU, memory, swap, network and file system of a pod", func(s *suite) { s.summarised(true) })
		check(t, c, "cAdvisor's metrics come from the runtime", cadvisorMetrics)
		check(t, c, "a checkpoint is refused with a reason", refusedCheckpoint)
		probes(t, c)
		termination(t, c)
	})
}

// TestNodes runs pods that talk across nodes.
func TestNodes(t *testing.T) {
	c := kube.Start(t, kube.Options{Nodes: 3})
	t.Run("side by side", func(t *testing.T) { acrossNodes(t, c) })
	t.Run("the pods of a drained node move to the others", func(t *testing.T) { movesOn(newSuite(t, c)) })
}

// TestKeep keeps a cluster until it is told to end, for `make cluster-up`: the file kubeconfig in
// GANTRY_CLUSTER_KEEP appears when its node is Ready.
func TestKeep(t *testing.T) {
	dir := os.Getenv("GANTRY_CLUSTER_KEEP")
	if dir == "" {
		t.Skip("nobody wants a cluster to stay")
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	c := kube.Start(t, kube.Options{})
	if _, err := c.TryKubectl(t.Context(), runtimeClasses, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "kubeconfig")
	if err := os.Symlink(c.Kubeconfig, link); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(link)
	<-end
}
