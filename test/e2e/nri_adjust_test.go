package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

// What a plugin wants is so in the container, as its processes and the kernel see it.
func TestPluginAdjustments(t *testing.T) {
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			n := node.Start(t, node.Options{Runtime: runtime})
			ref := warm(t, n)
			leavesNothing(t, n)
			touch := func(name string) []*api.Hook {
				return []*api.Hook{{Path: "/bin/touch", Args: []string{"touch", filepath.Join(n.Root, name)}}}
			}
			join(t, n, orders{Name: "10-adjusts", Adjust: &api.ContainerAdjustment{
				Args:    []string{"sh", "-c", "exec sleep 100000"},
				Env:     []*api.KeyValue{{Key: "-GONE"}, {Key: "SET", Value: "new"}},
				Mounts:  []*api.Mount{{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=64k"}}},
				Hooks:   &api.Hooks{CreateRuntime: touch("made"), Poststart: touch("started"), Poststop: touch("ended")},
				Rlimits: []*api.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 200, Soft: 100}},
				Linux: &api.LinuxContainerAdjustment{
					Devices:     []*api.LinuxDevice{{Path: "/dev/nil", Type: "c", Major: 1, Minor: 3, FileMode: &api.OptionalFileMode{Value: 0o666}}},
					OomScoreAdj: api.Int(777),
					Sysctl:      map[string]string{"net.ipv4.ip_default_ttl": "33"},
					Resources: &api.LinuxResources{
						Memory: &api.LinuxMemory{Limit: api.Int64(64 << 20), Swap: api.Int64(64 << 20)}, Pids: &api.LinuxPids{Limit: 55},
					},
					SeccompPolicy: &api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW", Syscalls: []*api.LinuxSyscall{
						{Names: []string{"sethostname"}, Action: "SCMP_ACT_ERRNO", ErrnoRet: api.UInt32(uint32(5))},
					}},
				},
			}})
			c := node.Container("main", n.Pull(ref), "false")
			c.Envs = []*runtimeapi.KeyValue{{Key: "GONE", Value: []byte("1")}, {Key: "SET", Value: []byte("old")}}
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
			pod, container := n.Launch(n.Sandbox("adjusted"), c)

			// The limit is that of the container's own process: an exec of runc before 1.1.13 sometimes
			// has the hard one for both (runc issue 4195).
			script := `echo "$GONE/$SET $(grep -c ' /scratch tmpfs' /proc/mounts) $(awk '/open files/ { print $4 "-" $5 }' /proc/1/limits)" $(cat /proc/1/oom_score_adj /proc/sys/net/ipv4/ip_default_ttl)
echo x > /dev/nil && echo written; hostname other 2>&1`
			if got, want := n.Exec(container, "sh", "-c", script+"; true"), "/new 1 100-200 777 33\nwritten\nhostname: sethostname: Input/output error\n"; got != want {
				t.Errorf("inside: %q, want %q", got, want)
			}
			limits := n.Exec(container, "sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max")
			if limits != "67108864\n55\n" {
				t.Errorf("limits of the cgroup: %q", limits)
			}
			if r := n.Container(container).GetResources().GetLinux(); r.GetMemoryLimitInBytes() != 64<<20 {
				t.Errorf("the status says %v", r)
			}
			if said := n.Gantry("inspect", container); !strings.Contains(said, `"adjustment"`) || !strings.Contains(said, "/scratch") {
				t.Errorf("gantry inspect does not tell what was adjusted")
			}
			n.RemovePod(pod)
			for _, name := range []string{"made", "started", "ended"} {
				if _, err := os.Stat(filepath.Join(n.Root, name)); err != nil {
					t.Errorf("the hook did not run: %v", err)
				}
			}
		})
	}
}

// What the runtime of the node would ignore is refused, by its name.
func TestPluginAdjustmentsThatAreRefused(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	leavesNothing(t, n)
	for field, refused := range map[string]struct {
		adjust *api.LinuxContainerAdjustment
		code   codes.Code
	}{
		"linux.memory_policy": {&api.LinuxContainerAdjustment{
			MemoryPolicy: &api.LinuxMemoryPolicy{Mode: api.MpolMode_MPOL_BIND, Nodes: "0"},
		}, codes.Unimplemented},
		"linux.resources.memory.kernel": {&api.LinuxContainerAdjustment{
			Resources: &api.LinuxResources{Memory: &api.LinuxMemory{Kernel: api.Int64(1)}},
		}, codes.Unimplemented},
		`blockio class "slow"`: {&api.LinuxContainerAdjustment{
			Resources: &api.LinuxResources{BlockioClass: api.String("slow")},
		}, codes.FailedPrecondition}, // the node has no classes
	} {
		t.Run(field, func(t *testing.T) {
			n := n.For(t)
			join(t, n, orders{Name: "10-asks", Adjust: &api.ContainerAdjustment{Linux: refused.adjust}})
			s := n.Sandbox("refused")
			pod := n.RunPod(s)
			defer n.RemovePod(pod)
			_, err := n.Runtime.CreateContainer(n.Context(), &runtimeapi.CreateContainerRequest{
				PodSandboxId: pod, Config: node.Container("main", n.Pull(ref), "true"), SandboxConfig: s,
			})
			if status.Code(err) != refused.code || !strings.Contains(err.Error(), field) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// A plugin changes the resources of containers: of others when one is created, of the one that is being
// resized, and by itself while it is being told of something in their own pod.
func TestPluginUpdates(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	id := n.Pull(ref)
	leavesNothing(t, n)
	s := n.Sandbox("updated")
	pod, container := n.Launch(s, node.Container("first", id, "sleep", "100000"))
	shares := func() int64 { return n.Container(container).GetResources().GetLinux().GetCpuShares() }
	weight := func(v uint64) *api.LinuxResources {
		return &api.LinuxResources{Cpu: &api.LinuxCPU{Shares: api.UInt64(v)}}
	}
	o := orders{
		Name: "10-updates", Log: filepath.Join(n.Root, "updates.log"),
		Update: weight(300), Resize: weight(500), Ask: "StartContainer", Unasked: weight(400),
	}
	join(t, n, o)
	n.Eventually("what the plugin wants when it joins is so", func() bool { return shares() == 300 })

	second := n.Create(pod, node.Container("second", id, "sleep", "100000"), s)
	n.StartContainer(second)
	if got := shares(); got != 400 {
		t.Errorf("after the start of another container the first has %d shares", got)
	}
	started := slices.IndexFunc(heard(t, o.Log), func(l told) bool { return l.Event == "StartContainer" })
	if started < 0 || len(heard(t, o.Log)[started].Failed) != 0 {
		t.Errorf("told %+v", heard(t, o.Log))
	}
	_, err := n.Runtime.UpdateContainerResources(n.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: container, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 1000},
	})
	if got := shares(); err != nil || got != 500 {
		t.Errorf("after the resize the container has %d shares, error %v", got, err)
	}
	n.RemovePod(pod)
}
