package ocispec_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/ocispec"
	"gantry/internal/pod"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// request is a small container on a cgroup v2 node; each test changes it.
func request() *ocispec.Request {
	return &ocispec.Request{
		Container: &pod.ContainerSpec{
			Key: "c0ffee", Sandbox: "5a17d0", Name: "web", ImageName: "registry.test/web:1",
			Namespaces: pod.Namespaces{PID: pod.NamespaceContainer},
		},
		Sandbox: &pod.SandboxSpec{
			Key: "5a17d0", Hostname: "web-0",
			Metadata: pod.Metadata{Name: "web-0", UID: "6d0a", Namespace: "shop"},
		},
		Image: pod.ImageConfig{
			Entrypoint: []string{"/bin/web"}, Cmd: []string{"--port", "80"}, WorkingDir: "/srv",
			Env: []string{"PATH=/web/bin", "MODE=image"},
		},
		Rootfs:      "/run/gantry/rootfs",
		CgroupsPath: "/kubepods/pod1/c0ffee",
		Namespaces:  ocispec.Namespaces{Net: "/var/run/netns/pod", IPC: "/run/gantry/p/ipc", UTS: "/run/gantry/p/uts"},
		Files: ocispec.Files{
			ResolvConf: "/run/gantry/p/resolv.conf", Hostname: "/run/gantry/p/hostname", Shm: "/run/gantry/p/shm",
		},
		Node: ocispec.Node{
			OCIVersion: "1.0.2", Bounding: everyCapability(), Hostname: "node-1",
			CgroupV2: true, AccountsSwap: true, LimitsHugepages: true, RecursiveReadOnly: true,
		},
	}
}

// everyCapability is what a server that lacks nothing may give.
func everyCapability() []string {
	var all []string
	for name := range strings.FieldsSeq(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP
		LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
		SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE
		AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`) {
		all = append(all, "CAP_"+name)
	}
	return all
}

func TestGolden(t *testing.T) {
	tests := map[string]func(*ocispec.Request){
		"plain": func(*ocispec.Request) {},
		"host":  hostNamespaces,
		"limits-v2": func(r *ocispec.Request) {
			r.Container.Resources = limits()
			r.Container.Resources.Unified = map[string]string{"memory.high": "1000000"}
		},
		"limits-v1": func(r *ocispec.Request) {
			r.Node.CgroupV2, r.Node.AccountsSwap, r.Node.OOMScoreAdj = false, false, 0
			r.Container.Resources = limits()
			r.Container.Resources.OOMScoreAdj = -998
		},
		"confined":   confined,
		"privileged": privileged,
		"mounts":     withMounts,
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			r := request()
			change(r)
			s, err := ocispec.Build(r)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(s, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".json")
			if *update {
				if err = os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.TrimSpace(string(want)), string(got)); diff != "" {
				t.Errorf("spec differs from %s (-update rewrites it):\n%s", golden, diff)
			}
		})
	}
}

func hostNamespaces(r *ocispec.Request) {
	r.Namespaces = ocispec.Namespaces{}
	r.Sandbox.Hostname = ""
	r.Container.Namespaces = pod.Namespaces{
		Network: pod.NamespaceNode, PID: pod.NamespaceNode, IPC: pod.NamespaceNode,
	}
	r.Files.Hostname = ""
	r.Files.Shm = "/dev/shm"
}

func limits() pod.Resources {
	return pod.Resources{
		CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 512, MemoryLimit: 64 << 20, OOMScoreAdj: 900,
		CPUSetCPUs: "0-1", CPUSetMems: "0", HugepageLimits: []pod.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
	}
}

func confined(r *ocispec.Request) {
	r.User = ocispec.User{UID: 1000, GID: 2000, Groups: []uint32{2000, 3000}}
	r.Container.TTY = true
	r.Container.Security = pod.Security{
		ReadOnlyRootfs: true, NoNewPrivileges: true,
		DropCaps: []string{"ALL"}, AddCaps: []string{"NET_BIND_SERVICE"}, AddAmbientCaps: []string{"net_bind_service"},
		MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
		AppArmor: &pod.Profile{Kind: pod.ProfileLocalhost, Ref: "web"},
		Seccomp:  &pod.Profile{Kind: pod.ProfileUnconfined},
	}
	r.Node.AppArmor = true
	r.ProcessLabel, r.MountLabel = "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"
}

func privileged(r *ocispec.Request) {
	r.Container.Security = pod.Security{
		Privileged: true, DropCaps: []string{"ALL"}, MaskedPaths: []string{"/proc/kcore"},
		Seccomp: &pod.Profile{Kind: pod.ProfileRuntimeDefault},
	}
	r.ProcessLabel, r.MountLabel = "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"
	r.Devices = []ocispec.Device{{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232, Mode: 0o660, GID: 104, Access: "rwm"}}
}

func withMounts(r *ocispec.Request) {
	r.Files.Hosts = "/run/gantry/p/hosts"
	r.Mounts = []pod.Mount{
		{ContainerPath: "/data/deep/er", HostPath: "/srv/deep"},
		{ContainerPath: "/data", HostPath: "/srv/data", ReadOnly: true, Propagation: pod.PropagationHostToContainer, Options: []string{"noexec", "nosuid"}},
		{ContainerPath: "/etc/hosts", HostPath: "/var/lib/kubelet/hosts"},
		{ContainerPath: "/dev/shm", HostPath: "/srv/shm"},
		{ContainerPath: "/ro", HostPath: "/srv/ro", ReadOnly: true, RecursiveReadOnly: true},
		{ContainerPath: "/csi", HostPath: "/srv/csi", Propagation: pod.PropagationBidirectional},
	}
	r.Devices = []ocispec.Device{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, Mode: 0o666, Access: "rw"}}
}

func TestCommand(t *testing.T) {
	tests := map[string]struct {
		command, args, want []string
	}{
		"neither: entrypoint and cmd":        {want: []string{"/bin/web", "--port", "80"}},
		"command replaces both":              {command: []string{"sh"}, want: []string{"sh"}},
		"args replace cmd":                   {args: []string{"-v"}, want: []string{"/bin/web", "-v"}},
		"command and args replace all of it": {command: []string{"sh"}, args: []string{"-c", "x"}, want: []string{"sh", "-c", "x"}},
	}
	for rule, tt := range tests {
		t.Run(rule, func(t *testing.T) {
			r := request()
			r.Container.Command, r.Container.Args = tt.command, tt.args
			s, err := ocispec.Build(r)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, s.Process.Args); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEnvironment(t *testing.T) {
	r := request()
	r.Image.Env = []string{"MODE=image", "EMPTY="}
	r.Container.Env = []pod.Var{{Name: "MODE", Value: "pod"}, {Name: "A", Value: "1"}, {Name: "A", Value: "x=y"}}
	s, err := ocispec.Build(r)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=web-0", "MODE=pod", "EMPTY=", "A=x=y",
	}
	if diff := cmp.Diff(want, s.Process.Env); diff != "" {
		t.Error(diff)
	}
}

func TestCapabilities(t *testing.T) {
	defaults := "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP"
	tests := map[string]struct {
		security pod.Security
		bounding []string
		want     string
	}{
		"nothing said: the defaults":       {want: defaults},
		"single add, any spelling":         {security: pod.Security{AddCaps: []string{"cap_sys_time"}}, want: defaults + " SYS_TIME"},
		"single drop":                      {security: pod.Security{DropCaps: []string{"CHOWN"}}, want: strings.TrimPrefix(defaults, "CHOWN ")},
		"drop ALL, then single adds":       {security: pod.Security{DropCaps: []string{"ALL"}, AddCaps: []string{"KILL"}}, want: "KILL"},
		"add ALL and drop ALL leave none":  {security: pod.Security{AddCaps: []string{"ALL"}, DropCaps: []string{"ALL"}}, want: ""},
		"a single drop wins over ALL":      {security: pod.Security{AddCaps: []string{"ALL"}, DropCaps: []string{"SYS_ADMIN"}}, bounding: []string{"CAP_SYS_ADMIN", "CAP_KILL"}, want: "KILL"},
		"what the server lacks is not set": {bounding: []string{"CAP_KILL"}, want: "KILL"},
	}
	for rule, tt := range tests {
		t.Run(rule, func(t *testing.T) {
			r := request()
			r.Container.Security = tt.security
			if tt.bounding != nil {
				r.Node.Bounding = tt.bounding
			}
			s, err := ocispec.Build(r)
			if err != nil {
				t.Fatal(err)
			}
			got := slices.Clone(s.Process.Capabilities.Effective)
			slices.Sort(got)
			want := strings.Fields(tt.want)
			for i := range want {
				want[i] = "CAP_" + want[i]
			}
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			if len(s.Process.Capabilities.Inheritable)+len(s.Process.Capabilities.Ambient) > 0 {
				t.Error("inheritable or ambient capabilities without being asked")
			}
		})
	}
}

func TestRuntimeDefaultSeccompFollowsTheCapabilities(t *testing.T) {
	allows := func(call string, caps ...string) bool {
		r := request()
		r.Container.Security = pod.Security{AddCaps: caps, Seccomp: &pod.Profile{Kind: pod.ProfileRuntimeDefault}}
		s, err := ocispec.Build(r)
		if err != nil {
			t.Fatal(err)
		}
		if s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != specs.ActErrno {
			t.Fatalf("profile %+v", s.Linux.Seccomp)
		}
		return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(rule specs.LinuxSyscall) bool {
			return rule.Action == specs.ActAllow && slices.Contains(rule.Names, call)
		})
	}
	if allows("mount") || !allows("mount", "SYS_ADMIN") || !allows("read") {
		t.Errorf("mount %v, mount with SYS_ADMIN %v, read %v", allows("mount"), allows("mount", "SYS_ADMIN"), allows("read"))
	}
}

func TestLocalhostSeccomp(t *testing.T) {
	file := filepath.Join(t.TempDir(), "profile.json")
	profile := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}`
	if err := os.WriteFile(file, []byte(profile), 0o600); err != nil {
		t.Fatal(err)
	}
	r := request()
	r.Container.Security.Seccomp = &pod.Profile{Kind: pod.ProfileLocalhost, Ref: file}
	s, err := ocispec.Build(r)
	if err != nil || s.Linux.Seccomp.Syscalls[0].Names[0] != "mkdir" {
		t.Fatalf("profile %+v, %v", s, err)
	}
	for rule, ref := range map[string]string{"relative": "profile.json", "absent": file + "-absent", "not JSON": os.Args[0]} {
		r.Container.Security.Seccomp.Ref = ref
		if _, err := ocispec.Build(r); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), ref) {
			t.Errorf("%s: %v", rule, err)
		}
	}
}

func TestRefusedWithTheFieldsName(t *testing.T) {
	tests := map[string]struct {
		change func(*ocispec.Request)
		is     func(error) bool
		names  string
	}{
		"no command at all":                    {func(r *ocispec.Request) { r.Image = pod.ImageConfig{} }, errdefs.IsInvalidArgument, "command"},
		"user namespace that is not the pod's": {func(r *ocispec.Request) { r.Container.Namespaces.User = &pod.UserNamespace{} }, errdefs.IsInvalidArgument, "userns_options"},
		"image mount":                          {func(r *ocispec.Request) { r.Mounts = []pod.Mount{{ContainerPath: "/m", Image: "i"}} }, errdefs.IsNotImplemented, "/m: image"},
		"id-mapped mount": {func(r *ocispec.Request) {
			r.Mounts = []pod.Mount{{ContainerPath: "/m", HostPath: "/", UIDs: []pod.IDMapping{{Length: 1}}}}
		}, errdefs.IsNotImplemented, "uidMappings"},
		"AppArmor that the kernel lacks": {func(r *ocispec.Request) {
			r.Container.Security.AppArmor = &pod.Profile{Kind: pod.ProfileLocalhost, Ref: "web"}
		}, errdefs.IsInvalidArgument, "apparmor"},
		"unified on v1": {func(r *ocispec.Request) {
			r.Node.CgroupV2, r.Container.Resources.Unified = false, map[string]string{"memory.high": "1"}
		}, errdefs.IsInvalidArgument, "memory.high"},
		"huge pages without a controller": {func(r *ocispec.Request) {
			r.Node.LimitsHugepages = false
			r.Container.Resources.HugepageLimits = []pod.HugepageLimit{{PageSize: "2MB", Limit: 1}}
		}, errdefs.IsInvalidArgument, "2MB"},
		"unknown capability":                  {func(r *ocispec.Request) { r.Container.Security.AddCaps = []string{"FLY"} }, errdefs.IsInvalidArgument, "FLY"},
		"pod PID namespace without a process": {func(r *ocispec.Request) { r.Container.Namespaces.PID = pod.NamespacePod }, errdefs.IsInvalidArgument, "pid namespace"},
		"recursive read-only without readonly": {func(r *ocispec.Request) {
			r.Mounts = []pod.Mount{{ContainerPath: "/m", HostPath: "/", RecursiveReadOnly: true}}
		}, errdefs.IsInvalidArgument, "recursive_read_only"},
		"recursive read-only without a runtime that can": {func(r *ocispec.Request) {
			r.Node.RecursiveReadOnly = false
			r.Mounts = []pod.Mount{{ContainerPath: "/m", HostPath: "/", ReadOnly: true, RecursiveReadOnly: true}}
		}, errdefs.IsInvalidArgument, "recursive_read_only"},
		"a mount option that is none": {func(r *ocispec.Request) {
			r.Mounts = []pod.Mount{{ContainerPath: "/m", HostPath: "/", Options: []string{"rshared"}}}
		}, errdefs.IsInvalidArgument, "mount_options"},
		"a variable without a name": {func(r *ocispec.Request) { r.Container.Env = []pod.Var{{Value: "x"}} }, errdefs.IsInvalidArgument, "envs"},
	}
	for rule, tt := range tests {
		t.Run(rule, func(t *testing.T) {
			r := request()
			tt.change(r)
			_, err := ocispec.Build(r)
			if !tt.is(err) || !strings.Contains(err.Error(), tt.names) {
				t.Errorf("error %v, want one of its class that names %q", err, tt.names)
			}
		})
	}
}

func TestAcceptedWithoutEffect(t *testing.T) {
	r := request()
	r.Node.LimitsHugepages = false
	r.Container.Resources.HugepageLimits = []pod.HugepageLimit{{PageSize: "2MB"}}
	r.Container.Security.AppArmor = &pod.Profile{Kind: pod.ProfileRuntimeDefault}
	s, err := ocispec.Build(r)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Linux.Resources.HugepageLimits) > 0 || s.Process.ApparmorProfile != "" {
		t.Errorf("hugepages %v, profile %q", s.Linux.Resources.HugepageLimits, s.Process.ApparmorProfile)
	}
}

func TestJoinedPIDNamespace(t *testing.T) {
	r := request()
	r.Container.Namespaces.PID = pod.NamespaceTarget
	r.Namespaces.PID = "/proc/12/ns/pid"
	s, err := ocispec.Build(r)
	if err != nil {
		t.Fatal(err)
	}
	want := specs.LinuxNamespace{Type: specs.PIDNamespace, Path: "/proc/12/ns/pid"}
	if !slices.Contains(s.Linux.Namespaces, want) {
		t.Errorf("namespaces %v lack %v", s.Linux.Namespaces, want)
	}
}

func TestAppArmorProfile(t *testing.T) {
	kind := func(k pod.ProfileKind) *pod.Profile { return &pod.Profile{Kind: k} }
	for rule, tt := range map[string]struct {
		sec    pod.Security
		node   ocispec.Node
		want   string
		refuse bool
	}{
		"nothing said: the default":          {node: ocispec.Node{AppArmor: true, DefaultProfile: "d"}, want: "d"},
		"nothing said and privileged: none":  {sec: pod.Security{Privileged: true}, node: ocispec.Node{AppArmor: true, DefaultProfile: "d"}},
		"the default, though privileged":     {sec: pod.Security{Privileged: true, AppArmor: kind(pod.ProfileRuntimeDefault)}, node: ocispec.Node{AppArmor: true, DefaultProfile: "d"}, want: "d"},
		"unconfined":                         {sec: pod.Security{AppArmor: kind(pod.ProfileUnconfined)}, node: ocispec.Node{AppArmor: true, DefaultProfile: "d"}},
		"the node's own profile":             {sec: pod.Security{AppArmor: &pod.Profile{Kind: pod.ProfileLocalhost, Ref: "web"}}, node: ocispec.Node{AppArmor: true, DefaultProfile: "d"}, want: "web"},
		"the default where none is loaded":   {sec: pod.Security{AppArmor: kind(pod.ProfileRuntimeDefault)}, node: ocispec.Node{AppArmor: true}, refuse: true},
		"nothing said where none is loaded":  {node: ocispec.Node{AppArmor: true}},
		"the default on a kernel without it": {sec: pod.Security{AppArmor: kind(pod.ProfileRuntimeDefault)}, node: ocispec.Node{DefaultProfile: "d"}},
	} {
		t.Run(rule, func(t *testing.T) {
			r := request()
			r.Container.Security = tt.sec
			r.Node.AppArmor, r.Node.DefaultProfile = tt.node.AppArmor, tt.node.DefaultProfile
			s, err := ocispec.Build(r)
			if tt.refuse {
				if !errdefs.IsFailedPrecondition(err) {
					t.Errorf("Build: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if s.Process.ApparmorProfile != tt.want {
				t.Errorf("profile %q, want %q", s.Process.ApparmorProfile, tt.want)
			}
		})
	}
}
