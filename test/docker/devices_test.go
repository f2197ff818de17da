package docker_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/labdocker"
	"gantry/test/node"
)

// toy is a vendor's description of a device (CDI 0.5.0).
const toy = `{"cdiVersion": "0.5.0", "kind": "vendor.example/toy", "devices": [{"name": "one", "containerEdits": {
  "env": ["TOY=one"], "deviceNodes": [{"path": "/dev/toy", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3}]}}]}`

// withToy asks for devices by their CDI names.
func withToy(n *node.Node, image string, names ...string) (pod string, c *runtimeapi.ContainerConfig, s *runtimeapi.PodSandboxConfig) {
	n.T().Helper()
	s = n.Sandbox("toys")
	r, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: s})
	if err != nil {
		n.T().Fatalf("run a pod: %v\n%s", err, n.LogTail())
	}
	c = node.Container("main", image, idle...)
	for _, name := range names {
		c.CDIDevices = append(c.CDIDevices, &runtimeapi.CDIDevice{Name: name})
	}
	return r.PodSandboxId, c, s
}

// TestCDIDevices has dockerd inject what a vendor describes.
func TestCDIDevices(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "toy.json"), []byte(toy), 0o600); err != nil {
		t.Fatal(err)
	}
	d := labdocker.Start(t, labdocker.Options{Flags: []string{"--cdi-spec-dir", dir}})
	n := node.Start(t, node.Options{Flags: []string{"--engine", "docker", "--docker-endpoint", d.Endpoint()}})
	image := d.Busybox()

	pod, c, s := withToy(n, image, "vendor.example/toy=one")
	container := n.Create(pod, c, s)
	n.StartContainer(container)
	// Docker gives a process of exec the variables that the client wrote, not those of a vendor.
	script := `tr '\0' '\n' < /proc/1/environ | grep TOY; echo gone > /dev/toy && cat /dev/toy && echo written`
	if got := n.Exec(container, "sh", "-c", script); got != "TOY=one\nwritten\n" {
		t.Errorf("in the container: %q", got)
	}
	n.RemovePod(pod)

	pod, c, s = withToy(n, image, "vendor.example/toy=two")
	_, err := n.Runtime.CreateContainer(n.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: s})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "vendor.example/toy=two") || !strings.Contains(err.Error(), dir) {
		t.Errorf("a device that nobody describes: %v; want InvalidArgument, its name and where it was looked for", err)
	}
	n.RemovePod(pod)
	if left := d.Docker("ps", "-aq"); left != "" {
		t.Errorf("docker is left with %s", left)
	}
}

func TestCDIDevicesOfAnOldDaemon(t *testing.T) {
	d := labdocker.Start(t, labdocker.Options{Version: labdocker.Debian})
	n := node.Start(t, node.Options{Flags: []string{"--engine", "docker", "--docker-endpoint", d.Endpoint()}})
	pod, c, s := withToy(n, d.Busybox(), "vendor.example/toy=one")
	_, err := n.Runtime.CreateContainer(n.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: s})
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "CDI_devices") {
		t.Errorf("%v; want Unimplemented, and the field", err)
	}
	n.RemovePod(pod)
	if left := d.Docker("ps", "-aq"); left != "" {
		t.Errorf("docker is left with %s", left)
	}
}
