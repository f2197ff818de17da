package cgroup2_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cgroup"
	"gantry/test/node"
)

// twice is each driver and each runtime once.
var twice = []setup{usual, {cgroup.Cgroupfs, "runc"}}

// TestAppArmor has containers below the default profile, below none, and refuses one that is not loaded.
func TestAppArmor(t *testing.T) {
	for _, s := range twice {
		t.Run(s.String(), func(t *testing.T) {
			n := s.serve(t)
			for kind, want := range map[*runtimeapi.SecurityProfile]string{
				nil: "gantry-default (enforce)\n",
				{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}: "gantry-default (enforce)\n",
				{ProfileType: runtimeapi.SecurityProfile_Unconfined}:     "unconfined\n",
			} {
				t.Run(kind.String(), func(t *testing.T) {
					l := s.launch(t, n.For(t), "sleep 100000", func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
						c.Linux.SecurityContext.Apparmor = kind
					})
					for what, file := range map[string]string{"the container": "/proc/1/attr/current", "an exec": "/proc/self/attr/current"} {
						if got := l.Exec(l.container, "cat", file); got != want {
							t.Errorf("%s is below %q, want %q", what, got, want)
						}
					}
					l.StopContainer(l.container, 0)
				})
			}
			sandbox := n.Sandbox("refused")
			sandbox.Linux.CgroupParent = ""
			pod := n.RunPod(sandbox)
			defer n.RemovePod(pod)
			c := node.Container("main", node.Busybox(t), "true")
			c.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "not-loaded"}
			r, err := n.Runtime.CreateContainer(n.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: sandbox})
			if err == nil {
				_, err = n.Runtime.StartContainer(n.Context(), &runtimeapi.StartContainerRequest{ContainerId: r.ContainerId})
			}
			if err == nil {
				t.Error("a container started below a profile that is not loaded")
			}
		})
	}
}

// TestUserNamespaces has a container whose root is nobody on the node: its limits hold, a volume belongs
// to whom it should, and no other pod gets its ids.
func TestUserNamespaces(t *testing.T) {
	for _, s := range twice {
		t.Run(s.String(), func(t *testing.T) {
			n := s.serve(t)
			volume := t.TempDir()
			file := filepath.Join(volume, "file")
			for dir := volume; dir != "/tmp"; dir = filepath.Dir(dir) { // ids of others must pass
				if err := os.Chmod(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Chown(file, 1000, 1000)); err != nil {
				t.Fatal(err)
			}
			ids := []*runtimeapi.IDMapping{{HostId: 400000, Length: 65536}}
			mapped := &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
			l := s.launch(t, n, "exec sleep 100000", func(p *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
				p.Linux.SecurityContext.NamespaceOptions.UsernsOptions = mapped
				c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = mapped
				c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512}
				c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/volume", HostPath: volume, UidMappings: ids, GidMappings: ids}}
			})
			got := strings.Join(strings.Fields(l.Exec(l.container, "sh", "-c", "cat /proc/self/uid_map; stat -c %u /volume/file /bin/sh; touch /volume/new && ls /volume")), " ")
			if want := "0 400000 65536 1000 0 file new"; got != want {
				t.Errorf("inside: %q, want %q", got, want)
			}
			if owner := run(t, "stat", "-c", "%u", filepath.Join(volume, "new")); owner != "0" {
				t.Errorf("what root inside wrote to the volume belongs to %s", owner)
			}
			l.has(t, map[string]string{"memory.max": "67108864", "cpu.weight": "20"})
			clash := n.Sandbox("clash")
			clash.Linux.CgroupParent = ""
			clash.Linux.SecurityContext.NamespaceOptions.UsernsOptions = mapped
			if _, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: clash}); status.Code(err) != codes.FailedPrecondition {
				t.Errorf("a pod with the same ids: %v", err)
			}
		})
	}
}

// TestPodResize does what the kubelet does in place: it changes the pod's cgroup, tells the pod's new
// sums, and changes the container. What a reload of systemd's state and a restart of the server leave is
// the same.
func TestPodResize(t *testing.T) {
	for _, s := range twice {
		t.Run(s.String(), func(t *testing.T) {
			l := s.launch(t, s.serve(t), counts, smallMemory)
			before := l.Container(l.container)
			parent := l.cgroup[:strings.LastIndexByte(l.cgroup, '/')]
			sums := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 768 << 20, CpuPeriod: 100000, CpuQuota: 150000, CpuShares: 1536}
			if s.driver == cgroup.Systemd {
				run(t, "systemctl", "set-property", "--runtime", filepath.Base(parent), "MemoryMax=768M", "CPUQuota=150%", "CPUWeight=59")
			} else if err := os.WriteFile(filepath.Join(mount, parent, "memory.max"), []byte("805306368"), 0); err != nil {
				t.Fatal(err)
			}
			_, err := l.Runtime.UpdatePodSandboxResources(l.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: l.pod, Resources: sums})
			if err != nil {
				t.Fatal(err)
			}
			_, err = l.Runtime.UpdateContainerResources(l.Context(), &runtimeapi.UpdateContainerResourcesRequest{
				ContainerId: l.container, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 48 << 20},
			})
			if err != nil {
				t.Fatal(err)
			}
			run(t, "systemctl", "daemon-reload")
			restart(t, l.Node)
			l.has(t, map[string]string{"memory.max": "50331648"})
			if got := file(t, parent, "memory.max"); got != "805306368" {
				t.Errorf("the pod's memory.max is %s", got)
			}
			if got := l.Container(l.container).Resources.GetLinux().GetMemoryLimitInBytes(); got != 48<<20 {
				t.Errorf("status says %d bytes", got)
			}
			l.goesOn(t, before)
		})
	}
}
