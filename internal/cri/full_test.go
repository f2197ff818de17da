package cri_test

import (
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Requests that set everything that can be set together.

func fullResources() *runtime.LinuxContainerResources {
	return &runtime.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512,
		MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20, OomScoreAdj: 900,
		CpusetCpus: "0-1", CpusetMems: "0",
		HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
		Unified:        map[string]string{"memory.high": "1000"},
	}
}

func fullUserNamespace() *runtime.UserNamespace {
	return &runtime.UserNamespace{
		Mode: runtime.NamespaceMode_POD,
		Uids: []*runtime.IDMapping{{HostId: 65536, ContainerId: 0, Length: 65536}},
		Gids: []*runtime.IDMapping{{HostId: 65536, ContainerId: 0, Length: 65536}},
	}
}

func fullSELinux() *runtime.SELinuxOption {
	return &runtime.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0"}
}

func localhost(ref string) *runtime.SecurityProfile {
	return &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: ref}
}

func fullRunPodSandbox() *runtime.RunPodSandboxRequest {
	return &runtime.RunPodSandboxRequest{
		RuntimeHandler: "runc",
		Config: &runtime.PodSandboxConfig{
			Metadata:     &runtime.PodSandboxMetadata{Name: "web", Uid: "u1", Namespace: "default", Attempt: 1},
			Hostname:     "web-1",
			LogDirectory: "/var/log/pods/web",
			DnsConfig:    &runtime.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"cluster.local"}, Options: []string{"ndots:5"}},
			PortMappings: []*runtime.PortMapping{{Protocol: runtime.Protocol_UDP, ContainerPort: 53, HostPort: 5353, HostIp: "127.0.0.1"}},
			Labels:       map[string]string{"a": "b"},
			Annotations:  map[string]string{"c": "d"},
			Linux: &runtime.LinuxPodSandboxConfig{
				CgroupParent: "/kubepods/pod1",
				Sysctls:      map[string]string{"net.ipv4.ip_forward": "1"},
				Overhead:     fullResources(),
				Resources:    fullResources(),
				SecurityContext: &runtime.LinuxSandboxSecurityContext{
					NamespaceOptions: &runtime.NamespaceOption{
						Pid: runtime.NamespaceMode_CONTAINER, UsernsOptions: fullUserNamespace(),
					},
					SelinuxOptions:     fullSELinux(),
					RunAsUser:          &runtime.Int64Value{Value: 1000},
					RunAsGroup:         &runtime.Int64Value{Value: 1000},
					SupplementalGroups: []int64{5},
					Seccomp:            localhost("/profiles/a.json"),
					Apparmor:           localhost("profile-a"),
				},
			},
		},
	}
}

func fullCreateContainer() *runtime.CreateContainerRequest {
	sandbox := fullRunPodSandbox().GetConfig()
	return &runtime.CreateContainerRequest{
		PodSandboxId:  "pod0",
		SandboxConfig: sandbox,
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "app", Attempt: 2},
			Image: &runtime.ImageSpec{
				Image: "sha256:abc", UserSpecifiedImage: "example.org/app:1", Annotations: map[string]string{"a": "b"},
			},
			Command:     []string{"/bin/app"},
			Args:        []string{"-v"},
			WorkingDir:  "/srv",
			Envs:        []*runtime.KeyValue{{Key: "A", Value: []byte("1")}},
			Mounts:      fullMounts(),
			Devices:     []*runtime.Device{{ContainerPath: "/dev/a", HostPath: "/dev/null", Permissions: "rw"}},
			CDIDevices:  []*runtime.CDIDevice{{Name: "vendor.com/gpu=0"}},
			Labels:      map[string]string{"a": "b"},
			Annotations: map[string]string{"c": "d"},
			LogPath:     "app/0.log",
			Stdin:       true,
			StopSignal:  runtime.Signal_SIGNAL_SIGUSR1,
			Linux: &runtime.LinuxContainerConfig{
				Resources:       fullResources(),
				SecurityContext: fullContainerSecurity(),
			},
		},
	}
}

func fullMounts() []*runtime.Mount {
	ids := []*runtime.IDMapping{{HostId: 65536, ContainerId: 0, Length: 65536}}
	return []*runtime.Mount{
		{ContainerPath: "/data", HostPath: "/srv/data", Readonly: true, UidMappings: ids, GidMappings: ids, MountOptions: []string{"nosuid"}},
		{ContainerPath: "/image", Image: &runtime.ImageSpec{Image: "sha256:def"}, ImageSubPath: "etc"},
	}
}

func fullContainerSecurity() *runtime.LinuxContainerSecurityContext {
	return &runtime.LinuxContainerSecurityContext{
		Capabilities: &runtime.Capability{
			AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"CHOWN"},
		},
		NamespaceOptions: &runtime.NamespaceOption{
			Pid: runtime.NamespaceMode_TARGET, TargetId: "container9", UsernsOptions: fullUserNamespace(),
		},
		SelinuxOptions:     fullSELinux(),
		RunAsUser:          &runtime.Int64Value{Value: 1000},
		RunAsGroup:         &runtime.Int64Value{Value: 1000},
		SupplementalGroups: []int64{5},
		MaskedPaths:        []string{"/proc/kcore"},
		ReadonlyPaths:      []string{"/proc/sys"},
		Seccomp:            localhost("/profiles/a.json"),
		Apparmor:           localhost("profile-a"),
	}
}
