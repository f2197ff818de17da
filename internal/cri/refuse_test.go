package cri_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
)

func TestRunPodSandboxRefuses(t *testing.T) {
	conn, _ := serve(t, &memory{}, cri.Interceptors{})
	client := runtime.NewRuntimeServiceClient(conn)
	for _, c := range []struct {
		rule   string
		change func(*runtime.PodSandboxConfig)
		field  string
		code   codes.Code // InvalidArgument when not set
	}{
		{"metadata is required", func(c *runtime.PodSandboxConfig) { c.Metadata = nil }, "config.metadata", 0},
		{"a pod has a name", func(c *runtime.PodSandboxConfig) { c.Metadata.Name = "" }, "config.metadata.name", 0},
		{"a pod has a UID", func(c *runtime.PodSandboxConfig) { c.Metadata.Uid = "" }, "config.metadata.uid", 0},
		{"a pod has a namespace", func(c *runtime.PodSandboxConfig) { c.Metadata.Namespace = "" }, "config.metadata.namespace", 0},
		{"a name is no path", func(c *runtime.PodSandboxConfig) { c.Metadata.Name = "../etc" }, "config.metadata.name", 0},
		{"a UID is no path", func(c *runtime.PodSandboxConfig) { c.Metadata.Uid = ".." }, "config.metadata.uid", 0},
		{"a name is one line", func(c *runtime.PodSandboxConfig) { c.Metadata.Name = "a\nb" }, "config.metadata.name", 0},
		{"a host name fits the kernel", func(c *runtime.PodSandboxConfig) { c.Hostname = strings.Repeat("x", 65) }, "config.hostname", 0},
		{"a host name is one word", func(c *runtime.PodSandboxConfig) { c.Hostname = "a b" }, "config.hostname", 0},
		{"a log directory is absolute", func(c *runtime.PodSandboxConfig) { c.LogDirectory = "logs" }, "config.log_directory", 0},
		{"a DNS server is one word", func(c *runtime.PodSandboxConfig) { c.DnsConfig.Servers = []string{"10.0.0.1\nevil"} }, "config.dns_config.servers", 0},
		{"a DNS option is not empty", func(c *runtime.PodSandboxConfig) { c.DnsConfig.Options = []string{""} }, "config.dns_config.options", 0},
		{"a protocol is known", func(c *runtime.PodSandboxConfig) { c.PortMappings[0].Protocol = 9 }, "config.port_mappings[0].protocol", 0},
		{"a container port exists", func(c *runtime.PodSandboxConfig) { c.PortMappings[0].ContainerPort = 0 }, "config.port_mappings[0].container_port", 0},
		{"a host port exists", func(c *runtime.PodSandboxConfig) { c.PortMappings[0].HostPort = 65536 }, "config.port_mappings[0].host_port", 0},
		{"a host port is not negative", func(c *runtime.PodSandboxConfig) { c.PortMappings[0].HostPort = -1 }, "config.port_mappings[0].host_port", 0},
		{"a host IP is an address", func(c *runtime.PodSandboxConfig) { c.PortMappings[0].HostIp = "localhost" }, "config.port_mappings[0].host_ip", 0},
		{"a cgroup parent leads nowhere else", func(c *runtime.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../../b" }, "config.linux.cgroup_parent", 0},
		{"a sysctl stays below /proc/sys", func(c *runtime.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"../x": "1"} }, "config.linux.sysctls", 0},
		{"overhead is checked too", func(c *runtime.PodSandboxConfig) { c.Linux.Overhead.CpuShares = -1 }, "config.linux.overhead.cpu_shares", 0},
		{"Windows is another node", func(c *runtime.PodSandboxConfig) { c.Windows = &runtime.WindowsPodSandboxConfig{} }, "config.windows", codes.Unimplemented},
		{"TARGET is for containers", func(c *runtime.PodSandboxConfig) { options(c).Pid = runtime.NamespaceMode_TARGET }, "namespace_options.pid", 0},
		{"CONTAINER is for processes", func(c *runtime.PodSandboxConfig) { options(c).Network = runtime.NamespaceMode_CONTAINER }, "namespace_options.network", 0},
		{"a namespace mode is known", func(c *runtime.PodSandboxConfig) { options(c).Pid = 9 }, "namespace_options.pid", 0},
		{"a user namespace has mappings", func(c *runtime.PodSandboxConfig) { options(c).UsernsOptions.Gids = nil }, "userns_options.gids", 0},
		{"a user namespace has one range", func(c *runtime.PodSandboxConfig) {
			u := options(c).UsernsOptions
			u.Uids = append(u.Uids, &runtime.IDMapping{ContainerId: 100, HostId: 7, Length: 1})
		}, "userns_options.uids", 0},
		{"a user namespace has a root", func(c *runtime.PodSandboxConfig) { options(c).UsernsOptions.Gids[0].ContainerId = 1 }, "userns_options.gids.container_id", 0},
		{"a mapping has a length", func(c *runtime.PodSandboxConfig) { options(c).UsernsOptions.Uids[0].Length = 0 }, "userns_options.uids.length", 0},
		{"a mapping ends at 2^32", func(c *runtime.PodSandboxConfig) { options(c).UsernsOptions.Uids[0].HostId = 1<<32 - 1 }, "userns_options.uids.host_id", 0},
		{"the node's ids are not mapped", func(c *runtime.PodSandboxConfig) { options(c).UsernsOptions.Mode = runtime.NamespaceMode_NODE }, "userns_options.uids", 0},
		{"a group needs a user", func(c *runtime.PodSandboxConfig) { c.Linux.SecurityContext.RunAsUser = nil }, "security_context.run_as_group", 0},
	} {
		t.Run(c.rule, func(t *testing.T) {
			req := fullRunPodSandbox()
			c.change(req.GetConfig())
			_, err := client.RunPodSandbox(t.Context(), req)
			checkRefusal(t, err, c.field, c.code)
		})
	}
	_, err := client.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{})
	checkRefusal(t, err, "config", 0)
}

func options(c *runtime.PodSandboxConfig) *runtime.NamespaceOption {
	return c.Linux.SecurityContext.NamespaceOptions
}

func checkRefusal(t *testing.T, err error, field string, code codes.Code) {
	t.Helper()
	if code == codes.OK {
		code = codes.InvalidArgument
	}
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), field+": ") {
		t.Errorf("got %v, want %v that names %s", err, code, field)
	}
}

func TestCreateContainerRefuses(t *testing.T) {
	m := &memory{}
	conn, _ := serve(t, m, cri.Interceptors{})
	client := runtime.NewRuntimeServiceClient(conn)
	type config = runtime.ContainerConfig
	security := func(c *config) *runtime.LinuxContainerSecurityContext { return c.Linux.SecurityContext }
	for _, c := range []struct {
		rule   string
		change func(*config)
		field  string
		code   codes.Code // InvalidArgument when not set
	}{
		{"metadata is required", func(c *config) { c.Metadata = nil }, "config.metadata", 0},
		{"a container has a name", func(c *config) { c.Metadata.Name = "" }, "config.metadata.name", 0},
		{"a container has an image", func(c *config) { c.Image = nil }, "config.image.image", 0},
		{"a log stays in its directory", func(c *config) { c.LogPath = "../../etc/passwd" }, "config.log_path", 0},
		{"a log path is relative", func(c *config) { c.LogPath = "/etc/passwd" }, "config.log_path", 0},
		{"a log is a file", func(c *config) { c.LogPath = "app/" }, "config.log_path", 0},
		{"a log is not the directory", func(c *config) { c.LogPath = "." }, "config.log_path", 0},
		{"an argument has no NUL", func(c *config) { c.Args = []string{"a\x00b"} }, "config.args", 0},
		{"a variable has a name", func(c *config) { c.Envs[0].Key = "" }, "config.envs[0].key", 0},
		{"a variable's name has no =", func(c *config) { c.Envs[0].Key = "A=B" }, "config.envs[0].key", 0},
		{"a variable is text", func(c *config) { c.Envs[0].Value = []byte{0xff} }, "config.envs[0].value", 0},
		{"stdin_once needs stdin", func(c *config) { c.Stdin, c.StdinOnce = false, true }, "config.stdin_once", 0},
		{"a mount has a place", func(c *config) { c.Mounts[0].ContainerPath = "" }, "config.mounts[0].container_path", 0},
		{"a mount's place is absolute", func(c *config) { c.Mounts[0].ContainerPath = "data" }, "config.mounts[0].container_path", 0},
		{"a mount has a source", func(c *config) { c.Mounts[0].HostPath = "" }, "config.mounts[0].host_path", 0},
		{"a mount has one source", func(c *config) { c.Mounts[1].HostPath = "/x" }, "config.mounts[1].host_path", 0},
		{"a sub-path needs an image", func(c *config) { c.Mounts[0].ImageSubPath = "x" }, "config.mounts[0].image_sub_path", 0},
		{"a sub-path stays in the image", func(c *config) { c.Mounts[1].ImageSubPath = "a/../../b" }, "config.mounts[1].image_sub_path", 0},
		{"an image mount names its image", func(c *config) { c.Mounts[1].Image.Image = "" }, "config.mounts[1].image.image", 0},
		{"recursive read-only is read-only", func(c *config) { c.Mounts[0].Readonly, c.Mounts[0].RecursiveReadOnly = false, true }, "config.mounts[0].recursive_read_only", 0},
		{"recursive read-only is private", func(c *config) { c.Mounts[0].RecursiveReadOnly, c.Mounts[0].Propagation = true, 1 }, "config.mounts[0].recursive_read_only", 0},
		{"a propagation is known", func(c *config) { c.Mounts[0].Propagation = 9 }, "config.mounts[0].propagation", 0},
		{"a mount option is one option", func(c *config) { c.Mounts[0].MountOptions = []string{"nosuid,suid"} }, "config.mounts[0].mount_options", 0},
		{"a device has a source", func(c *config) { c.Devices[0].HostPath = "" }, "config.devices[0].host_path", 0},
		{"a device's permissions are r, w, m", func(c *config) { c.Devices[0].Permissions = "rx" }, "config.devices[0].permissions", 0},
		{"a CDI device has a name", func(c *config) { c.CDIDevices[0].Name = "" }, "config.CDI_devices[0].name", 0},
		{"a signal is known", func(c *config) { c.StopSignal = 999 }, "config.stop_signal", 0},
		{"a CPU period is not negative", func(c *config) { c.Linux.Resources.CpuPeriod = -1 }, "config.linux.resources.cpu_period", 0},
		{"a memory limit is not negative", func(c *config) { c.Linux.Resources.MemoryLimitInBytes = -1 }, "config.linux.resources.memory_limit_in_bytes", 0},
		{"a swap limit is -1 at least", func(c *config) { c.Linux.Resources.MemorySwapLimitInBytes = -2 }, "config.linux.resources.memory_swap_limit_in_bytes", 0},
		{"oom_score_adj is the kernel's", func(c *config) { c.Linux.Resources.OomScoreAdj = 1001 }, "config.linux.resources.oom_score_adj", 0},
		{"a CPU set is a list", func(c *config) { c.Linux.Resources.CpusetCpus = "all" }, "config.linux.resources.cpuset_cpus", 0},
		{"a page size is the kernel's", func(c *config) { c.Linux.Resources.HugepageLimits[0].PageSize = "2M" }, "config.linux.resources.hugepage_limits.page_size", 0},
		{"a cgroup file is in the cgroup", func(c *config) { c.Linux.Resources.Unified = map[string]string{"../memory.max": "1"} }, "config.linux.resources.unified", 0},
		{"TARGET names a container", func(c *config) { security(c).NamespaceOptions.TargetId = "" }, "namespace_options.target_id", 0},
		{"a user is named once", func(c *config) { security(c).RunAsUsername = "root" }, "security_context.run_as_username", 0},
		{"a user is not negative", func(c *config) { security(c).RunAsUser.Value = -1 }, "security_context.run_as_user", 0},
		{"a user is not the kernel's nobody", func(c *config) { security(c).RunAsUser.Value = 1<<32 - 1 }, "security_context.run_as_user", 0},
		{"a group is not negative", func(c *config) { security(c).SupplementalGroups = []int64{-1} }, "security_context.supplemental_groups", 0},
		{"a groups policy is known", func(c *config) { security(c).SupplementalGroupsPolicy = 9 }, "security_context.supplemental_groups_policy", 0},
		{"a capability is a word", func(c *config) { security(c).Capabilities.AddCapabilities = []string{"net admin"} }, "add_capabilities", 0},
		{"a masked path is absolute", func(c *config) { security(c).MaskedPaths = []string{"proc"} }, "security_context.masked_paths", 0},
		{"a seccomp profile is a path", func(c *config) { security(c).Seccomp.LocalhostRef = "a.json" }, "seccomp.localhost_ref", 0},
		{"a local profile has a name", func(c *config) { security(c).Apparmor.LocalhostRef = "" }, "apparmor.localhost_ref", 0},
		{"a profile type is known", func(c *config) { security(c).Apparmor = &runtime.SecurityProfile{ProfileType: 9} }, "apparmor.profile_type", 0},
		{"an old profile is known", func(c *config) { security(c).Seccomp = nil; security(c).SeccompProfilePath = "x" }, "seccomp_profile_path", 0}, //nolint:staticcheck // old clients set it
		{"Windows is another node", func(c *config) { c.Windows = &runtime.WindowsContainerConfig{} }, "config.windows", codes.Unimplemented},
	} {
		t.Run(c.rule, func(t *testing.T) {
			req := fullCreateContainer()
			c.change(req.GetConfig())
			_, err := client.CreateContainer(t.Context(), req)
			checkRefusal(t, err, c.field, c.code)
		})
	}
	if len(m.containers) > 0 {
		t.Errorf("%d refused containers reached the backend", len(m.containers))
	}
}

func TestRequestsWithoutTheirSubject(t *testing.T) {
	conn, _ := serve(t, &memory{}, cri.Interceptors{})
	for method, field := range map[string]string{
		"RuntimeService/StopPodSandbox":           "pod_sandbox_id",
		"RuntimeService/RemovePodSandbox":         "pod_sandbox_id",
		"RuntimeService/PodSandboxStatus":         "pod_sandbox_id",
		"RuntimeService/PodSandboxStats":          "pod_sandbox_id",
		"RuntimeService/PortForward":              "pod_sandbox_id",
		"RuntimeService/CreateContainer":          "pod_sandbox_id",
		"RuntimeService/StartContainer":           "container_id",
		"RuntimeService/StopContainer":            "container_id",
		"RuntimeService/RemoveContainer":          "container_id",
		"RuntimeService/ContainerStatus":          "container_id",
		"RuntimeService/ContainerStats":           "container_id",
		"RuntimeService/UpdateContainerResources": "container_id",
		"RuntimeService/ReopenContainerLog":       "container_id",
		"RuntimeService/ExecSync":                 "container_id",
		"RuntimeService/CheckpointContainer":      "container_id",
		"RuntimeService/CheckpointPod":            "pod_sandbox_id",
		"RuntimeService/RestorePod":               "checkpoint_path",
		"RuntimeService/Exec":                     "container_id",
		"RuntimeService/Attach":                   "container_id",
		"ImageService/ImageStatus":                "image.image",
		"ImageService/PullImage":                  "image.image",
		"ImageService/RemoveImage":                "image.image",
	} {
		err := conn.Invoke(t.Context(), "/runtime.v1."+method, &runtime.VersionRequest{}, &runtime.VersionResponse{})
		t.Run(method, func(t *testing.T) { checkRefusal(t, err, field, 0) })
	}
}

func TestOtherRefusals(t *testing.T) {
	m := &memory{}
	conn, _ := serve(t, m, cri.Interceptors{})
	for _, c := range []struct {
		rule, method string
		req          proto.Message
		field        string
		code         codes.Code
	}{
		{"a sandbox config comes along", "RuntimeService/CreateContainer", &runtime.CreateContainerRequest{PodSandboxId: "p", Config: createRequest().Config}, "sandbox_config", 0},
		{"a grace period is not negative", "RuntimeService/StopContainer", &runtime.StopContainerRequest{ContainerId: "c", Timeout: -1}, "timeout", 0},
		{"a command is not empty", "RuntimeService/ExecSync", &runtime.ExecSyncRequest{ContainerId: "c"}, "cmd", 0},
		{"a deadline is not negative", "RuntimeService/ExecSync", &runtime.ExecSyncRequest{ContainerId: "c", Cmd: []string{"x"}, Timeout: -1}, "timeout", 0},
		{"a stream is wanted", "RuntimeService/Exec", &runtime.ExecRequest{ContainerId: "c", Cmd: []string{"x"}}, "stdin, stdout, stderr", 0},
		{"a terminal has one output", "RuntimeService/Attach", &runtime.AttachRequest{ContainerId: "c", Tty: true, Stderr: true}, "stderr", 0},
		{"a port exists", "RuntimeService/PortForward", &runtime.PortForwardRequest{PodSandboxId: "p", Port: []int32{70000}}, "port", 0},
		{"an update says what", "RuntimeService/UpdateContainerResources", &runtime.UpdateContainerResourcesRequest{ContainerId: "c"}, "linux", 0},
		{"an update is for Linux", "RuntimeService/UpdateContainerResources", &runtime.UpdateContainerResourcesRequest{ContainerId: "c", Windows: &runtime.WindowsContainerResources{}}, "windows", codes.Unimplemented},
		{"an update knows no annotations", "RuntimeService/UpdateContainerResources", &runtime.UpdateContainerResourcesRequest{ContainerId: "c", Annotations: map[string]string{"a": "b"}}, "annotations", codes.Unimplemented},
		{"a checkpoint has a place", "RuntimeService/CheckpointContainer", &runtime.CheckpointContainerRequest{ContainerId: "c"}, "location", 0},
		{"its place is absolute", "RuntimeService/CheckpointContainer", &runtime.CheckpointContainerRequest{ContainerId: "c", Location: "a.tar"}, "location", 0},
		{"its limit is not negative", "RuntimeService/CheckpointContainer", &runtime.CheckpointContainerRequest{ContainerId: "c", Location: "/a", Timeout: -1}, "timeout", 0},
		{"a pod's checkpoint has a directory", "RuntimeService/CheckpointPod", &runtime.CheckpointPodRequest{PodSandboxId: "p", OutputPath: "a", ContainerIds: []string{"c"}}, "output_path", 0},
		{"a pod's checkpoint has containers", "RuntimeService/CheckpointPod", &runtime.CheckpointPodRequest{PodSandboxId: "p", OutputPath: "/a"}, "container_ids", 0},
		{"a checkpoint has no options", "RuntimeService/CheckpointPod", &runtime.CheckpointPodRequest{PodSandboxId: "p", OutputPath: "/a", ContainerIds: []string{"c"}, Options: map[string]string{"tcp": "yes"}}, "options", 0},
		{"a restore has no options", "RuntimeService/RestorePod", &runtime.RestorePodRequest{CheckpointPath: "/a", Config: sandboxConfig(), Options: map[string]string{"tcp": "yes"}}, "options", 0},
		{"a restore has a pod", "RuntimeService/RestorePod", &runtime.RestorePodRequest{CheckpointPath: "/a"}, "config", 0},
		{"a restore has containers", "RuntimeService/RestorePod", &runtime.RestorePodRequest{CheckpointPath: "/a", Config: sandboxConfig()}, "container_configs", 0},
		{"a container is restored once", "RuntimeService/RestorePod", &runtime.RestorePodRequest{CheckpointPath: "/a", Config: sandboxConfig(), ContainerConfigs: []*runtime.ContainerConfig{createRequest().Config, createRequest().Config}}, "container_configs[1].metadata.name", 0},
		{"a pull's handler exists", "ImageService/PullImage", &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: "a", RuntimeHandler: "none"}}, "image.runtime_handler", 0},
	} {
		err := conn.Invoke(t.Context(), "/runtime.v1."+c.method, c.req, &runtime.VersionResponse{})
		t.Run(c.rule, func(t *testing.T) { checkRefusal(t, err, c.field, c.code) })
	}
}
