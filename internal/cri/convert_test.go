package cri_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// sandboxFrom is what the backend gets for a request.
func sandboxFrom(t *testing.T, req *runtime.RunPodSandboxRequest) pod.SandboxSpec {
	t.Helper()
	m := &memory{}
	if _, err := service(m).RunPodSandbox(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	return m.pods[0].Spec
}

func containerFrom(t *testing.T, req *runtime.CreateContainerRequest) pod.ContainerSpec {
	t.Helper()
	m := &memory{}
	if _, err := service(m).CreateContainer(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	return m.containers[0].Spec
}

func wantSame(t *testing.T, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("want -, got +:\n%s", d)
	}
}

func pointer(n int64) *int64 { return &n }

func resourcesWanted() pod.Resources {
	return pod.Resources{
		CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 512, MemoryLimit: 64 << 20, MemorySwapLimit: 64 << 20,
		OOMScoreAdj: 900, CPUSetCPUs: "0-1", CPUSetMems: "0",
		HugepageLimits: []pod.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
		Unified:        map[string]string{"memory.high": "1000"},
	}
}

func TestSandboxSpec(t *testing.T) {
	r, ids := resourcesWanted(), []pod.IDMapping{{HostID: 65536, Length: 65536}}
	wantSame(t, sandboxFrom(t, fullRunPodSandbox()), pod.SandboxSpec{
		Metadata:     pod.Metadata{Name: "web", UID: "u1", Namespace: "default", Attempt: 1},
		Handler:      "runc",
		Hostname:     "web-1",
		LogDirectory: "/var/log/pods/web",
		DNS:          &pod.DNS{Servers: []string{"10.0.0.10"}, Searches: []string{"cluster.local"}, Options: []string{"ndots:5"}},
		Ports:        []pod.PortMapping{{Protocol: pod.UDP, ContainerPort: 53, HostPort: 5353, HostIP: "127.0.0.1"}},
		Labels:       map[string]string{"a": "b"},
		Annotations:  map[string]string{"c": "d"},
		CgroupParent: "/kubepods/pod1",
		Sysctls:      map[string]string{"net.ipv4.ip_forward": "1"},
		Namespaces: pod.Namespaces{
			Network: pod.NamespacePod, PID: pod.NamespaceContainer, IPC: pod.NamespacePod,
			User: &pod.UserNamespace{UIDs: ids, GIDs: ids},
		},
		Security: pod.Security{
			RunAsUser: pointer(1000), RunAsGroup: pointer(1000), SupplementalGroups: []int64{5},
			Seccomp:  &pod.Profile{Kind: pod.ProfileLocalhost, Ref: "/profiles/a.json"},
			AppArmor: &pod.Profile{Kind: pod.ProfileLocalhost, Ref: "profile-a"},
			SELinux:  &pod.SELinux{User: "u", Role: "r", Type: "t", Level: "s0"},
		},
		Resources: &r,
		Overhead:  &r,
	})
}

func TestLeastSandboxSpec(t *testing.T) {
	got := sandboxFrom(t, &runtime.RunPodSandboxRequest{Config: sandboxConfig()})
	wantSame(t, got, pod.SandboxSpec{
		Metadata:   pod.Metadata{Name: "web", UID: "u1", Namespace: "default"},
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespacePod, IPC: pod.NamespacePod},
	})
}

func TestContainerSpec(t *testing.T) {
	ids := []pod.IDMapping{{HostID: 65536, Length: 65536}}
	wantSame(t, containerFrom(t, fullCreateContainer()), pod.ContainerSpec{
		Name: "app", Attempt: 2,
		ImageID: "sha256:abc", ImageName: "example.org/app:1",
		Command: []string{"/bin/app"}, Args: []string{"-v"}, WorkingDir: "/srv",
		Env: []pod.Var{{Name: "A", Value: "1"}},
		Mounts: []pod.Mount{
			{ContainerPath: "/data", HostPath: "/srv/data", ReadOnly: true, Propagation: pod.PropagationPrivate, UIDs: ids, GIDs: ids, Options: []string{"nosuid"}},
			{ContainerPath: "/image", Image: "sha256:def", ImageSubPath: "etc", ReadOnly: true, Propagation: pod.PropagationPrivate},
		},
		Devices:     []pod.Device{{ContainerPath: "/dev/a", HostPath: "/dev/null", Permissions: "rw"}},
		CDIDevices:  []string{"vendor.com/gpu=0"},
		Labels:      map[string]string{"a": "b"},
		Annotations: map[string]string{"c": "d"},
		LogPath:     "/var/log/pods/web/app/0.log", LogName: "app/0.log",
		Stdin:     true,
		Resources: resourcesWanted(),
		Namespaces: pod.Namespaces{
			Network: pod.NamespacePod, PID: pod.NamespaceTarget, IPC: pod.NamespacePod, TargetID: "container9",
			User: &pod.UserNamespace{UIDs: ids, GIDs: ids},
		},
		Security: pod.Security{
			RunAsUser: pointer(1000), RunAsGroup: pointer(1000), SupplementalGroups: []int64{5},
			AddCaps: []string{"NET_ADMIN"}, DropCaps: []string{"ALL"}, AddAmbientCaps: []string{"CHOWN"},
			MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
			Seccomp:  &pod.Profile{Kind: pod.ProfileLocalhost, Ref: "/profiles/a.json"},
			AppArmor: &pod.Profile{Kind: pod.ProfileLocalhost, Ref: "profile-a"},
			SELinux:  &pod.SELinux{User: "u", Role: "r", Type: "t", Level: "s0"},
		},
		StopSignal: "SIGUSR1",
	})
}

func TestContainerSpecRules(t *testing.T) {
	type config = runtime.ContainerConfig
	type spec = pod.ContainerSpec
	for _, c := range []struct {
		rule   string
		change func(*config)
		got    func(*spec) any
		want   any
	}{
		{"the image's name is what the user wrote", func(*config) {}, func(s *spec) any { return s.ImageName }, "example.org/app:1"},
		{"without a user's name the image is its own", func(c *config) { c.Image.UserSpecifiedImage = "" }, func(s *spec) any { return s.ImageName }, "sha256:abc"},
		{"no log path, no log", func(c *config) { c.LogPath = "" }, func(s *spec) any { return s.LogPath }, ""},
		{"a capability loses CAP_", func(c *config) {
			c.Linux.SecurityContext.Capabilities.AddCapabilities = []string{"cap_sys_admin", "ALL"}
		}, func(s *spec) any { return s.Security.AddCaps }, []string{"SYS_ADMIN", "ALL"}},
		{"no seccomp is unconfined", func(c *config) { c.Linux.SecurityContext.Seccomp = nil }, func(s *spec) any { return s.Security.Seccomp }, (*pod.Profile)(nil)},
		{"an old seccomp profile counts alone", func(c *config) {
			c.Linux.SecurityContext.Seccomp = nil
			c.Linux.SecurityContext.SeccompProfilePath = "localhost//a.json" //nolint:staticcheck // old clients set it
		}, func(s *spec) any { return s.Security.Seccomp }, &pod.Profile{Kind: pod.ProfileLocalhost, Ref: "/a.json"}},
		{"a local profile may have the prefix of old", func(c *config) {
			c.Linux.SecurityContext.Apparmor = localhost("localhost/profile-b")
		}, func(s *spec) any { return s.Security.AppArmor }, &pod.Profile{Kind: pod.ProfileLocalhost, Ref: "profile-b"}},
		{"an old AppArmor profile counts alone", func(c *config) {
			c.Linux.SecurityContext.Apparmor = nil
			c.Linux.SecurityContext.ApparmorProfile = "runtime/default" //nolint:staticcheck // old clients set it
		}, func(s *spec) any { return s.Security.AppArmor }, &pod.Profile{Kind: pod.ProfileRuntimeDefault}},
		{"an unconfined profile says so", func(c *config) {
			c.Linux.SecurityContext.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
		}, func(s *spec) any { return s.Security.Seccomp }, &pod.Profile{Kind: pod.ProfileUnconfined}},
		{"strict groups", func(c *config) {
			c.Linux.SecurityContext.SupplementalGroupsPolicy = runtime.SupplementalGroupsPolicy_Strict
		}, func(s *spec) any { return s.Security.StrictGroups }, true},
		{"a real-time signal", func(c *config) { c.StopSignal = runtime.Signal_SIGNAL_SIGRTMINPLUS3 }, func(s *spec) any { return s.StopSignal }, "SIGRTMIN+3"},
		{"a real-time signal from the end", func(c *config) { c.StopSignal = runtime.Signal_SIGNAL_SIGRTMAXMINUS14 }, func(s *spec) any { return s.StopSignal }, "SIGRTMAX-14"},
		{"no signal is the default", func(c *config) { c.StopSignal = 0 }, func(s *spec) any { return s.StopSignal }, ""},
		{"a container may have no Linux part", func(c *config) { c.Linux = nil }, func(s *spec) any { return s.Namespaces.PID }, pod.NamespacePod},
		{"propagation", func(c *config) {
			c.Mounts[0].Propagation = runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}, func(s *spec) any { return s.Mounts[0].Propagation }, pod.PropagationBidirectional},
		{"a variable may be empty", func(c *config) { c.Envs[0].Value = nil }, func(s *spec) any { return s.Env }, []pod.Var{{Name: "A"}}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			req := fullCreateContainer()
			c.change(req.GetConfig())
			s := containerFrom(t, req)
			wantSame(t, c.got(&s), c.want)
		})
	}
}

// What a client gave comes back in the status as it was.
func TestStopSignalsComeBack(t *testing.T) {
	for n := range runtime.Signal_name {
		req := createRequest()
		req.Config.StopSignal = runtime.Signal(n)
		m := &memory{}
		s := service(m)
		if _, err := s.CreateContainer(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		m.containers[0].StopSignal = m.containers[0].Spec.StopSignal
		checkSignal(t, m, runtime.Signal(n))
	}
}

func TestStopSignalsOfImages(t *testing.T) {
	for given, want := range map[string]runtime.Signal{
		"SIGTERM":    runtime.Signal_SIGNAL_SIGTERM,
		"TERM":       runtime.Signal_SIGNAL_SIGTERM,
		"sigquit":    runtime.Signal_SIGNAL_SIGQUIT,
		"15":         runtime.Signal_SIGNAL_SIGTERM,
		"9":          runtime.Signal_SIGNAL_SIGKILL,
		"34":         runtime.Signal_SIGNAL_SIGRTMIN,
		"37":         runtime.Signal_SIGNAL_SIGRTMINPLUS3,
		"64":         runtime.Signal_SIGNAL_SIGRTMAX,
		"60":         runtime.Signal_SIGNAL_SIGRTMAXMINUS4,
		"SIGRTMIN+3": runtime.Signal_SIGNAL_SIGRTMINPLUS3,
		"":           runtime.Signal_SIGNAL_RUNTIME_DEFAULT,
		"1000":       runtime.Signal_SIGNAL_RUNTIME_DEFAULT,
		"nonsense":   runtime.Signal_SIGNAL_RUNTIME_DEFAULT,
	} {
		checkSignal(t, &memory{containers: []*pod.Container{{ID: "c", StopSignal: given}}}, want)
	}
}

func checkSignal(t *testing.T, m *memory, want runtime.Signal) {
	t.Helper()
	res, err := service(m).ContainerStatus(t.Context(), &runtime.ContainerStatusRequest{ContainerId: "c"})
	if err != nil {
		t.Fatal(err)
	}
	if got := res.GetStatus().GetStopSignal(); got != want {
		t.Errorf("%q: got %v, want %v", m.containers[0].StopSignal, got, want)
	}
}
