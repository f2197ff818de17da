package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// callTime is how long one call may take on a slow machine before the test calls it hung: two minutes,
// or GANTRY_PATIENCE, a duration, on one in software emulation.
func callTime() time.Duration {
	if patience, err := time.ParseDuration(os.Getenv("GANTRY_PATIENCE")); err == nil {
		return patience
	}
	return 2 * time.Minute
}

var pods atomic.Int64

// Sandbox returns a pod's configuration with a uid of its own.
func (n *Node) Sandbox(name string) *runtimeapi.PodSandboxConfig {
	uid := fmt.Sprintf("uid-%d-%d", os.Getpid(), pods.Add(1))
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: uid, Namespace: "lab"},
		Hostname:     name,
		LogDirectory: filepath.Join(n.Logs, "lab_"+name+"_"+uid),
		Labels:       map[string]string{"app": name},
		Annotations:  map[string]string{"lab/note": "kept as given"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: n.Cgroup + "/pod" + uid,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{
				Network: runtimeapi.NamespaceMode_POD, Pid: runtimeapi.NamespaceMode_CONTAINER, Ipc: runtimeapi.NamespaceMode_POD,
			}},
		},
	}
}

// HostNetwork turns a pod into one on the node's network.
func HostNetwork(s *runtimeapi.PodSandboxConfig) *runtimeapi.PodSandboxConfig {
	s.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	s.Hostname = ""
	return s
}

// Container returns a container's configuration.
func Container(name, image string, command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: image},
		Command:  command,
		LogPath:  name + "_0.log",
		Labels:   map[string]string{"part": name},
		Linux: &runtimeapi.LinuxContainerConfig{
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{
				Network: runtimeapi.NamespaceMode_POD, Pid: runtimeapi.NamespaceMode_CONTAINER, Ipc: runtimeapi.NamespaceMode_POD,
			}},
		},
	}
}

// Context bounds one call.
func (n *Node) Context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), callTime())
	n.t.Cleanup(cancel)
	return ctx
}

// For returns the node with t as the test that its failures belong to, for subtests.
func (n *Node) For(t testing.TB) *Node {
	c := *n
	c.t = t
	return &c
}

// Pull pulls an image and returns its id.
func (n *Node) Pull(ref string) string {
	n.t.Helper()
	r, err := n.Images.PullImage(n.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		n.t.Fatalf("pull %s: %v", ref, err)
	}
	return r.ImageRef
}

// RunPod makes a sandbox, which must succeed.
func (n *Node) RunPod(s *runtimeapi.PodSandboxConfig) string {
	n.t.Helper()
	r, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: s})
	if err != nil {
		n.t.Fatalf("run pod %s: %v", s.Metadata.Name, err)
	}
	return r.PodSandboxId
}

// Create makes a container in a pod, which must succeed.
func (n *Node) Create(pod string, c *runtimeapi.ContainerConfig, s *runtimeapi.PodSandboxConfig) string {
	n.t.Helper()
	r, err := n.Runtime.CreateContainer(n.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: s})
	if err != nil {
		n.t.Fatalf("create container %s: %v", c.Metadata.Name, err)
	}
	return r.ContainerId
}

// StartContainer starts a container, which must succeed.
func (n *Node) StartContainer(id string) {
	n.t.Helper()
	if _, err := n.Runtime.StartContainer(n.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		n.t.Fatalf("start container: %v", err)
	}
}

// Launch runs a pod with one container.
func (n *Node) Launch(s *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) (pod, container string) {
	n.t.Helper()
	pod = n.RunPod(s)
	container = n.Create(pod, c, s)
	n.StartContainer(container)
	return pod, container
}

// StopContainer stops a container with a grace period.
func (n *Node) StopContainer(id string, grace time.Duration) {
	n.t.Helper()
	_, err := n.Runtime.StopContainer(n.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: int64(grace.Seconds())})
	if err != nil {
		n.t.Fatalf("stop container: %v", err)
	}
}

// RemovePod stops and removes a pod with its containers.
func (n *Node) RemovePod(id string) {
	n.t.Helper()
	if _, err := n.Runtime.StopPodSandbox(n.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		n.t.Fatalf("stop pod: %v", err)
	}
	if _, err := n.Runtime.RemovePodSandbox(n.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		n.t.Fatalf("remove pod: %v", err)
	}
}

// Exec runs a command in a container, which must exit 0, and returns its standard output.
func (n *Node) Exec(id string, command ...string) string {
	n.t.Helper()
	r, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: int64(callTime().Seconds()) / 2})
	if err != nil {
		n.t.Fatalf("exec %s: %v", strings.Join(command, " "), err)
	}
	if r.ExitCode != 0 {
		n.t.Fatalf("exec %s: exit code %d: %s", strings.Join(command, " "), r.ExitCode, r.Stderr)
	}
	return string(r.Stdout)
}

// Container returns a container's status.
func (n *Node) Container(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	r, err := n.Runtime.ContainerStatus(n.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		n.t.Fatalf("container status: %v", err)
	}
	return r.Status
}

// Pod returns a sandbox's status.
func (n *Node) Pod(id string) *runtimeapi.PodSandboxStatus {
	n.t.Helper()
	r, err := n.Runtime.PodSandboxStatus(n.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		n.t.Fatalf("pod status: %v", err)
	}
	return r.Status
}

// Ended waits until a container has exited and returns its status.
func (n *Node) Ended(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	var status *runtimeapi.ContainerStatus
	n.Eventually("container "+id+" has exited", func() bool {
		status = n.Container(id)
		return status.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return status
}

// Eventually asks until true is the answer; too long is a failure of the test.
func (n *Node) Eventually(what string, holds func() bool) {
	n.t.Helper()
	deadline := time.After(callTime())
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			n.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// ReadLog returns what a container's log file holds, tags and stamps included.
func (n *Node) ReadLog(id string) string {
	n.t.Helper()
	data, err := os.ReadFile(n.Container(id).LogPath)
	if err != nil {
		n.t.Fatalf("read log: %v", err)
	}
	return string(data)
}
