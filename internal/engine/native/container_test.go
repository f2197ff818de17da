package native_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/cgroup"
	"gantry/internal/engine"
	"gantry/internal/engine/native"
	"gantry/internal/image"
	"gantry/internal/pod"
)

func TestContainersAsTheyWereAskedFor(t *testing.T) {
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "file"), []byte("from the node\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	uid, gid := int64(1000), int64(2000)
	tests := map[string]struct {
		script string
		change func(*pod.ContainerSpec)
		want   string
		code   int32
	}{
		"exit code": {script: "exit 42", code: 42},
		"environment and working directory": {
			script: "echo $A; pwd", want: "1\n/work/here",
			change: func(c *pod.ContainerSpec) { c.Env, c.WorkingDir = []pod.Var{{Name: "A", Value: "1"}}, "/work/here" },
		},
		"user and groups": {
			script: "id -u; id -g; id -G", want: "1000\n2000\n2000 3000",
			change: func(c *pod.ContainerSpec) {
				c.Security = pod.Security{RunAsUser: &uid, RunAsGroup: &gid, SupplementalGroups: []int64{3000}, StrictGroups: true}
			},
		},
		"read-only root": {
			script: "touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo shm", want: "refused\nshm",
			change: func(c *pod.ContainerSpec) { c.Security.ReadOnlyRootfs = true },
		},
		"writable root, /sys and cgroups read-only": {
			script: "touch /x && echo root; touch /sys/x 2>/dev/null || echo sys; mkdir /sys/fs/cgroup/memory/x 2>/dev/null || echo cgroup", want: "root\nsys\ncgroup",
		},
		"capabilities": {
			script: "grep CapEff /proc/self/status | cut -f2", want: "0000000000000400",
			change: func(c *pod.ContainerSpec) {
				c.Security = pod.Security{DropCaps: []string{"ALL"}, AddCaps: []string{"NET_BIND_SERVICE"}}
			},
		},
		"no new privileges, seccomp": {
			script: "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | cut -f2; unshare -m true 2>/dev/null || echo refused", want: "1\n2\nrefused",
			change: func(c *pod.ContainerSpec) {
				c.Security = pod.Security{NoNewPrivileges: true, AddCaps: []string{"KILL"}, Seccomp: &pod.Profile{Kind: pod.ProfileRuntimeDefault}}
			},
		},
		"masked and read-only paths": {
			script: "wc -c < /proc/interrupts; (echo 1 > /proc/sys/kernel/panic) 2>/dev/null || echo refused", want: "0\nrefused",
			change: func(c *pod.ContainerSpec) {
				c.Security = pod.Security{MaskedPaths: []string{"/proc/interrupts"}, ReadonlyPaths: []string{"/proc/sys"}}
			},
		},
		"mounts": {
			script: "cat /data/file; touch /data/x 2>/dev/null || echo refused; cat /etc/resolv.conf", want: "from the node\nrefused\nfrom the node",
			change: func(c *pod.ContainerSpec) {
				c.Mounts = []pod.Mount{
					{ContainerPath: "/data", HostPath: data, ReadOnly: true},
					{ContainerPath: "/etc/resolv.conf", HostPath: filepath.Join(data, "file")},
				}
			},
		},
		"a device": {
			script: "head -c 3 /dev/nothing | wc -c; ls /dev/kmsg 2>/dev/null", want: "3", code: 1,
			change: func(c *pod.ContainerSpec) {
				c.Devices = []pod.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/nothing", Permissions: "r"}}
			},
		},
		"a privileged one has the node's devices and may mount": {
			script: "ls /dev/loop-control && mount -t tmpfs none /tmp && echo mounted; touch /sys/fs/cgroup/x 2>/dev/null; grep -c 'sysfs /sys sysfs rw' /proc/mounts", want: "/dev/loop-control\nmounted\n1",
			change: func(c *pod.ContainerSpec) { c.Security.Privileged = true },
		},
		"oom_score_adj is not below the server's": {
			script: "cat /proc/self/oom_score_adj", want: "0",
			change: func(c *pod.ContainerSpec) { c.Resources.OOMScoreAdj = -998 },
		},
		"a memory limit ends what exceeds it": {
			script: "tail -c 200m /dev/zero", code: 137,
			change: func(c *pod.ContainerSpec) { c.Resources.MemoryLimit = 32 << 20 },
		},
	}
	for _, runtime := range []string{"crun", "runc"} {
		p := newStation(t, runtime).newPod(t)
		for rule, tt := range tests {
			t.Run(runtime+"/"+rule, func(t *testing.T) {
				q := *p
				q.t = t
				change := func(*pod.ContainerSpec) {}
				if tt.change != nil {
					change = tt.change
				}
				text, exit := q.run(tt.script, change)
				if text != tt.want || exit.Code != tt.code {
					t.Errorf("exit %+v, printed\n%s\nwant %d,\n%s", exit, text, tt.code, tt.want)
				}
				if limited := strings.HasPrefix(rule, "a memory limit"); exit.OOMKilled != limited {
					t.Errorf("OOM killed: %v, want %v", exit.OOMKilled, limited)
				}
			})
		}
	}
}

func TestPropagationOfMounts(t *testing.T) {
	shared := t.TempDir()
	if err := unix.Mount("tmpfs", shared, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(shared, unix.MNT_DETACH) })
	if err := unix.Mount("", shared, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(shared, "inner"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := newStation(t, "crun").newPod(t)
	_, exit := p.run("mount -t tmpfs none /m/inner && touch /m/inner/from-the-container", func(c *pod.ContainerSpec) {
		c.Security.Privileged = true
		c.Mounts = []pod.Mount{{ContainerPath: "/m", HostPath: shared, Propagation: pod.PropagationBidirectional}}
	})
	if _, err := os.Stat(filepath.Join(shared, "inner", "from-the-container")); err != nil || exit.Code != 0 {
		t.Errorf("a mount that the container made does not show on the node: %v, exit %+v", err, exit)
	}
}

func TestContainersThatAreRefusedLeaveNothing(t *testing.T) {
	s := newStation(t, "crun")
	tests := map[string]struct {
		change func(*pod.ContainerSpec)
		is     func(error) bool
		names  string
	}{
		"absent mount source": {func(c *pod.ContainerSpec) {
			c.Mounts = []pod.Mount{{ContainerPath: "/m", HostPath: "/no/such/source"}}
		}, errdefs.IsInvalidArgument, "/no/such/source"},
		"unknown user": {func(c *pod.ContainerSpec) { c.Security.RunAsUsername = "ghost" }, errdefs.IsInvalidArgument, "ghost"},
		"a shared PID namespace that the sandbox has not": {func(c *pod.ContainerSpec) { c.Namespaces.PID = pod.NamespacePod }, errdefs.IsInvalidArgument, "pid namespace"},
		"unknown capability":                              {func(c *pod.ContainerSpec) { c.Security.AddCaps = []string{"FLY"} }, errdefs.IsInvalidArgument, "FLY"},
		"sandbox that is absent":                          {func(c *pod.ContainerSpec) { c.Sandbox = pod.NewKey() }, errdefs.IsNotFound, "sandbox"},
		"recursive read-only that may be written": {func(c *pod.ContainerSpec) {
			c.Mounts = []pod.Mount{{ContainerPath: "/m", HostPath: "/", RecursiveReadOnly: true}}
		}, errdefs.IsInvalidArgument, "recursive_read_only"},
		"a program that is not there": {func(c *pod.ContainerSpec) { c.Command = []string{"/no/such/program"} }, func(err error) bool { return err != nil }, "/no/such/program"},
	}
	for rule, tt := range tests {
		t.Run(rule, func(t *testing.T) {
			p := s.newPod(t)
			before := s.leftovers(t)
			_, err := p.CreateContainer(t.Context(), p.request("true", tt.change))
			if !tt.is(err) || !strings.Contains(err.Error(), tt.names) {
				t.Errorf("error %v, want one of its class that names %s", err, tt.names)
			}
			if after := s.leftovers(t); !slices.Equal(before, after) {
				t.Errorf("left behind %v, before there was %v", after, before)
			}
		})
	}
}

func TestARuntimeThatIsNotThere(t *testing.T) {
	p := newStation(t, "crun").newPod(t, func(spec *pod.SandboxSpec) { spec.Handler = "broken" })
	_, err := p.CreateContainer(t.Context(), p.request("true"))
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "/no/such/runtime") {
		t.Errorf("error %v", err)
	}
	if err := p.Status(t.Context()); err != nil {
		t.Errorf("a handler that nobody needs makes the engine unready: %v", err)
	}
	if features := p.Features(t.Context()); len(features) != 1 {
		t.Errorf("features %v", features)
	}
}

func TestStatusOnHybridCgroups(t *testing.T) {
	root := t.TempDir()
	for _, file := range []string{"memory/cgroup.procs", "unified/cgroup.procs", "unified/cgroup.controllers"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, file), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for runtime, refused := range map[string]bool{"crun": true, "runc": false} {
		s := newStation(t, runtime)
		s.opts.CgroupRoot = root
		e, err := native.New(s.opts)
		if err != nil {
			t.Fatal(err)
		}
		err = e.Status(t.Context())
		if errdefs.IsUnavailable(err) != refused || refused && !strings.Contains(err.Error(), "hybrid") {
			t.Errorf("%s: %v", runtime, err)
		}
	}
}

func TestWhatACrashLeftOfAContainer(t *testing.T) {
	p := newStation(t, "crun").newPod(t)
	req := p.request("echo whole")
	key := req.Spec.Key
	if err := os.Mkdir(filepath.Join(p.opts.StateDir, "containers", string(key)), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := p.opts.Rootfs.Prepare(t.Context(), image.Mount{Key: string(key), Image: p.image.ID}); err != nil {
		t.Fatal(err)
	}
	inv, err := p.List(t.Context())
	if err != nil || len(inv.Containers) != 1 || inv.Containers[0].Key != key || inv.Containers[0].State != pod.ContainerCreating {
		t.Errorf("List shows %+v, %v", inv.Containers, err)
	}
	if _, err := p.CreateContainer(t.Context(), req); err != nil {
		t.Errorf("made anew: %v", err)
	}
	if err := p.RemoveContainer(t.Context(), key); err != nil {
		t.Error(err)
	}
	if inv, err := p.List(t.Context()); err != nil || len(inv.Containers) > 0 {
		t.Errorf("List shows %+v, %v", inv.Containers, err)
	}
}

func TestUpdateChangesTheCgroup(t *testing.T) {
	cgroups, err := cgroup.Open(cgroup.DefaultRoot)
	if err != nil {
		t.Fatal(err)
	}
	for _, runtime := range []string{"crun", "runc"} {
		p := newStation(t, runtime).newPod(t)
		req := p.request("exec sleep 1000", func(c *pod.ContainerSpec) { c.Resources.MemoryLimit = 64 << 20 })
		created := p.start(req)
		if err := p.UpdateContainer(t.Context(), req.Spec.Key, &pod.Resources{MemoryLimit: 96 << 20, CPUShares: 512}); err != nil {
			t.Fatal(err)
		}
		if got, err := cgroups.Read(created.CgroupPath); err != nil || got.MemoryLimit != 96<<20 || got.Processes == 0 {
			t.Errorf("%s: statistics %+v, %v", runtime, got, err)
		}
	}
}

func TestVolumesOfTheImageExist(t *testing.T) {
	p := newStation(t, "crun").newPod(t)
	img := *p.image
	img.Config.Volumes = map[string]struct{}{"/data/of/the/image": {}}
	p.image = &img
	if text, exit := p.run("cd /data/of/the/image && touch x && ls"); text != "x" {
		t.Errorf("exit %+v, printed %q", exit, text)
	}
}

func TestSignalsByNumberAndRelativeToRealTimeOnes(t *testing.T) {
	p := newStation(t, "crun").newPod(t)
	events, err := p.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, number := range map[string]string{"SIGRTMIN+3": "37", "rtmax-1": "63", "12": "12", "Usr1": "10"} {
		// The shell waits for its child and for signals at once: one that comes before it waits is not overslept.
		req := p.request("trap 'exit 9' " + number + "; touch /trapped; while :; do sleep 1000 & wait $!; done")
		p.start(req)
		p.exec(req.Spec.Key, "sh", "-c", "until [ -e /trapped ]; do sleep 0.01; done")
		if err := p.SignalContainer(t.Context(), req.Spec.Key, engine.Signal{Name: name}); err != nil {
			t.Fatal(err)
		}
		for ev := range events {
			if ev.Key == req.Spec.Key {
				if ev.Exit == nil || ev.Exit.Code != 9 {
					t.Errorf("%s: %+v", name, ev.Exit)
				}
				break
			}
		}
	}
	for _, name := range []string{"", "0", "65", "-1", "SIGRTMIN+99", "SIGRTMIN+x", "SIGRTMAX+1", "TERM+1"} {
		if err := p.SignalContainer(t.Context(), pod.NewKey(), engine.Signal{Name: name}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("signal %q: %v", name, err)
		}
	}
}
