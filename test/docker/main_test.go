// Package docker_test runs the real server on real Docker Engines, alone and beside the native engine.
package docker_test

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/lab"
	"gantry/internal/labdocker"
	"gantry/test/node"
)

func TestMain(m *testing.M) { lab.Main(m) }

// idle is a command that does nothing until it is told to end.
var idle = []string{"sh", "-c", "echo up; trap exit TERM; while :; do sleep 1; done"}

// both starts a server whose default engine is the native one, beside a Docker Engine with its network.
func both(t *testing.T, v labdocker.Version, flags ...string) (*node.Node, *labdocker.Daemon) {
	t.Helper()
	d := labdocker.Start(t, labdocker.Options{Version: v, Network: true, LiveRestore: true})
	return node.Start(t, node.Options{Flags: append([]string{"--docker-endpoint", d.Endpoint()}, flags...)}), d
}

// launch runs a pod with one container on the engine of a handler.
func launch(n *node.Node, name, handler string, c *runtimeapi.ContainerConfig) (pod, container string) {
	s := n.Sandbox(name)
	n.T().Helper()
	r, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: s, RuntimeHandler: handler})
	if err != nil {
		n.T().Fatalf("run pod %s: %v\n%s", name, err, n.LogTail())
	}
	container = n.Create(r.PodSandboxId, c, s)
	n.StartContainer(container)
	return r.PodSandboxId, container
}
