package native_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/cgroup"
	"gantry/internal/engine"
	"gantry/internal/engine/native"
	"gantry/internal/pod"
)

func TestNamespacesOfAPod(t *testing.T) {
	s := newStation(t, "crun")
	p := s.newPod(t, func(spec *pod.SandboxSpec) {
		spec.Sysctls = map[string]string{"kernel.shmmax": "4096000", "net.ipv4.ip_unprivileged_port_start": "80"}
	})
	text, exit := p.run(`hostname; cat /etc/hostname /etc/resolv.conf; cat /proc/sys/kernel/shmmax /proc/sys/net/ipv4/ip_unprivileged_port_start;
		echo $HOSTNAME; ip -o link | wc -l; echo $$; df -m /dev/shm | awk 'NR==2{print $2}'; echo mine > /dev/shm/file`)
	want := "web-0\nweb-0\nnameserver 192.0.2.7\n4096000\n80\nweb-0\n1\n1\n64"
	if exit.Code != 0 || text != want {
		t.Errorf("exit %+v, printed\n%s\nwant\n%s", exit, text, want)
	}
	if text, _ := p.run("cat /dev/shm/file; readlink /proc/self/ns/net"); !strings.HasPrefix(text, "mine\n") || strings.Contains(text, nsOf(t, "net")) {
		t.Errorf("a second container of the pod sees %q", text)
	}
	if text, _ := s.newPod(t).run("ls /dev/shm | wc -l"); text != "0" {
		t.Errorf("another pod sees %s files in its /dev/shm", text)
	}
}

func nsOf(t *testing.T, kind string) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestPodOnTheNodesNamespaces(t *testing.T) {
	p := newStation(t, "crun").newPod(t, func(spec *pod.SandboxSpec) {
		spec.Namespaces = pod.Namespaces{Network: pod.NamespaceNode, PID: pod.NamespaceNode, IPC: pod.NamespaceNode}
		spec.Hostname = ""
	})
	if p.made.NetNS != "" {
		t.Errorf("made the network namespace %s", p.made.NetNS)
	}
	want := strings.Join([]string{nsOf(t, "net"), nsOf(t, "ipc"), nsOf(t, "pid"), nsOf(t, "uts")}, "\n")
	if text, _ := p.run("for ns in net ipc pid uts; do readlink /proc/self/ns/$ns; done"); text != want {
		t.Errorf("namespaces\n%s\nwant\n%s", text, want)
	}
	inv, err := p.List(t.Context())
	if err != nil || len(inv.Sandboxes) != 1 || !inv.Sandboxes[0].Ready {
		t.Errorf("List shows %+v, %v", inv.Sandboxes, err)
	}
}

func TestSharedPIDNamespace(t *testing.T) {
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			p := newStation(t, runtime).newPod(t, func(spec *pod.SandboxSpec) { spec.Namespaces.PID = pod.NamespacePod })
			other := p.request("exec sleep 1000")
			p.start(other)
			text, exit := p.run(psOnce("[s]leep 1000", "/[p]ause pause") + "; (sleep 0 &) ; exit 3")
			if exit.Code != 3 || !strings.Contains(text, "1 /pause pause") || !strings.Contains(text, "sleep 1000") {
				t.Errorf("exit %+v, processes\n%s", exit, text)
			}
			inv, err := p.List(t.Context())
			if err != nil || len(inv.Sandboxes) != 1 || !inv.Sandboxes[0].Ready || len(inv.Containers) != 2 {
				t.Fatalf("List shows %+v, %v; want a ready sandbox and no pause container", inv, err)
			}
			if err = p.StopSandbox(t.Context(), p.spec.Key); err != nil {
				t.Fatal(err)
			}
			inv, err = p.List(t.Context())
			if err != nil || inv.Sandboxes[0].Ready {
				t.Errorf("after stop List shows %+v, %v", inv.Sandboxes, err)
			}
		})
	}
}

// psOnce lists processes once those are among them, each given so that it does not match itself: what has started a
// container answers before the OCI runtime has given way to the program.
func psOnce(patterns ...string) string {
	script := "ps -o pid,args > /ps"
	for _, p := range patterns {
		script = "until ps -o args | grep -q '" + p + "'; do sleep 0.01; done; " + script
	}
	return script + "; cat /ps"
}

func TestKilledPauseProcessEndsItsSandbox(t *testing.T) {
	p := newStation(t, "crun").newPod(t, func(spec *pod.SandboxSpec) { spec.Namespaces.PID = pod.NamespacePod })
	events, err := p.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	states, err := p.keeper.List(t.Context())
	if err != nil || len(states) != 1 {
		t.Fatalf("the keeper has %+v, %v; want the pause process", states, err)
	}
	if err := unix.Kill(states[0].Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if ev := <-events; ev.Key != p.spec.Key || ev.Exit == nil || ev.Exit.Code != 137 {
		t.Errorf("event %+v, want the end of sandbox %s", ev, p.spec.Key)
	}
	if inv, err := p.List(t.Context()); err != nil || inv.Sandboxes[0].Ready {
		t.Errorf("List shows %+v, %v", inv.Sandboxes, err)
	}
}

func TestTargetPIDNamespace(t *testing.T) {
	p := newStation(t, "crun").newPod(t)
	target := p.request("exec sleep 1234")
	pid := p.start(target).Pid
	req := p.request(psOnce("[s]leep 1234"), func(c *pod.ContainerSpec) {
		c.Namespaces.PID, c.Namespaces.TargetID = pod.NamespaceTarget, string(target.Spec.Key)
	})
	req.TargetPid = pid
	events, err := p.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.start(req)
	for ev := range events {
		if ev.Key == req.Spec.Key {
			break
		}
	}
	if text := p.logged(req); !strings.Contains(text, "sleep 1234") {
		t.Errorf("the target's process is not among\n%s", text)
	}
}

func TestSandboxesThatAreRefusedLeaveNothing(t *testing.T) {
	s := newStation(t, "crun")
	tests := map[string]struct {
		change func(*pod.SandboxSpec)
		is     func(error) bool
		names  string
	}{
		"unknown handler":             {func(p *pod.SandboxSpec) { p.Handler = "kata" }, errdefs.IsInvalidArgument, `"kata"`},
		"user namespace without root": {func(p *pod.SandboxSpec) { p.Namespaces.User = &pod.UserNamespace{} }, errdefs.IsInvalidArgument, "userns_options"},
		"user namespace on the node's network": {func(p *pod.SandboxSpec) {
			p.Namespaces.User, p.Namespaces.Network = userNamespace(100000), pod.NamespaceNode
		}, errdefs.IsInvalidArgument, "network namespace"},
		"a sysctl of the node": {func(p *pod.SandboxSpec) {
			p.Sysctls = map[string]string{"vm.swappiness": "1"}
		}, errdefs.IsInvalidArgument, "vm.swappiness"},
		"a cgroup parent that is no path": {func(p *pod.SandboxSpec) { p.CgroupParent = "pods.slice" }, errdefs.IsInvalidArgument, "pods.slice"},
		"a pause process on a runtime that is not there": {func(p *pod.SandboxSpec) {
			p.Handler, p.Namespaces.PID = "broken", pod.NamespacePod
		}, errdefs.IsUnavailable, "/no/such/runtime"},
		"a target for a sandbox": {func(p *pod.SandboxSpec) { p.Namespaces.PID = pod.NamespaceTarget }, errdefs.IsInvalidArgument, "pid namespace"},
	}
	for rule, tt := range tests {
		t.Run(rule, func(t *testing.T) {
			spec := &pod.SandboxSpec{Key: pod.NewKey(), CgroupParent: s.parent}
			tt.change(spec)
			_, err := s.CreateSandbox(t.Context(), spec, engine.Files{})
			if !tt.is(err) || !strings.Contains(err.Error(), tt.names) {
				t.Errorf("error %v, want one of its class that names %s", err, tt.names)
			}
			if left := s.leftovers(t); len(left) > 0 {
				t.Errorf("left behind %v", left)
			}
		})
	}
}

func TestWhatACrashLeftOfASandbox(t *testing.T) {
	s := newStation(t, "crun")
	for rule, leave := range map[string]func(dir string) error{
		"a directory":   func(string) error { return nil },
		"a torn record": func(dir string) error { return os.WriteFile(filepath.Join(dir, "sandbox.json"), []byte("{"), 0o600) },
		"a record, nothing else": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "sandbox.json"), []byte(`{"cgroup":"/gantry-test-none","namespaces":{"IPC":"/nowhere/ipc"}}`), 0o600)
		},
		"a pin that is not mounted": func(dir string) error { return os.WriteFile(filepath.Join(dir, "ipc"), nil, 0o600) },
	} {
		t.Run(rule, func(t *testing.T) {
			key := pod.NewKey()
			dir := filepath.Join(s.opts.StateDir, "sandboxes", string(key))
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := leave(dir); err != nil {
				t.Fatal(err)
			}
			inv, err := s.List(t.Context())
			if err != nil || len(inv.Sandboxes) != 1 || inv.Sandboxes[0].Key != key {
				t.Errorf("List shows %+v, %v", inv.Sandboxes, err)
			}
			p := s.newPod(t, func(spec *pod.SandboxSpec) { spec.Key = key })
			if text, _ := p.run("hostname"); text != "web-0" {
				t.Errorf("made anew it prints %q", text)
			}
		})
	}
}

func TestASuccessorGoesOn(t *testing.T) {
	s := newStation(t, "crun")
	p := s.newPod(t, func(spec *pod.SandboxSpec) { spec.Namespaces.PID = pod.NamespacePod })
	req := p.request("exec sleep 1000")
	created := p.start(req)
	successor, err := native.New(s.opts)
	if err != nil {
		t.Fatal(err)
	}
	p.Engine = successor
	if text, code := p.exec(req.Spec.Key, "hostname"); text != "web-0" || code != 0 {
		t.Errorf("exec prints %q, code %d", text, code)
	}
	made, err := p.CreateSandbox(t.Context(), &p.spec, p.files)
	if err != nil || made != p.made {
		t.Errorf("the sandbox made again is %+v, %v", made, err)
	}
	again, err := p.CreateContainer(t.Context(), req)
	if err != nil || again.Pid != created.Pid || again.CgroupPath != created.CgroupPath {
		t.Errorf("the container made again is %+v, %v, want %+v", again, err, created)
	}
}

func TestCgroupOfAPod(t *testing.T) {
	s := newStation(t, "crun")
	cgroups, err := cgroup.Open(cgroup.DefaultRoot)
	if err != nil {
		t.Fatal(err)
	}
	limits := &pod.Resources{MemoryLimit: 256 << 20}
	parent := s.parent + "/unnamed"
	p := s.newPod(t, func(spec *pod.SandboxSpec) { spec.CgroupParent, spec.Resources = parent, limits })
	if got, err := cgroups.Read(parent); err != nil || got.MemoryLimit != 256<<20 {
		t.Errorf("limits of the pod %+v, %v", got, err)
	}
	if err := p.UpdateSandbox(t.Context(), p.spec.Key, &pod.Resources{MemoryLimit: 300 << 20}); err != nil {
		t.Fatal(err)
	}
	if got, err := cgroups.Read(parent); err != nil || got.MemoryLimit != 300<<20 {
		t.Errorf("updated limits of the pod %+v, %v", got, err)
	}
	if err := p.RemoveSandbox(t.Context(), p.spec.Key); err != nil {
		t.Fatal(err)
	}
	if cgroups.Exists(parent) {
		t.Error("a cgroup that the engine made outlives the sandbox")
	}

	if err := cgroups.Create(parent); err != nil {
		t.Fatal(err)
	}
	p = s.newPod(t, func(spec *pod.SandboxSpec) { spec.CgroupParent, spec.Resources = parent, limits })
	if err := p.RemoveSandbox(t.Context(), p.spec.Key); err != nil {
		t.Fatal(err)
	}
	if got, err := cgroups.Read(parent); err != nil || got.MemoryLimit != 0 {
		t.Errorf("a cgroup that the client made was changed: %+v, %v", got, err)
	}
}

// TestCgroupThatPodsShareStays: an OCI runtime has just made a container's cgroup in it, and is about
// to put the process there.
func TestCgroupThatPodsShareStays(t *testing.T) {
	s := newStation(t, "crun")
	cgroups, err := cgroup.Open(cgroup.DefaultRoot)
	if err != nil {
		t.Fatal(err)
	}
	parent := s.parent + "/shared"
	p := s.newPod(t, func(spec *pod.SandboxSpec) { spec.CgroupParent = parent })
	if err := cgroups.Create(parent + "/other"); err != nil {
		t.Fatal(err)
	}
	if err := p.RemoveSandbox(t.Context(), p.spec.Key); err != nil {
		t.Fatal(err)
	}
	if !cgroups.Exists(parent + "/other") {
		t.Error("the cgroup of another pod's container went with the sandbox")
	}
	if err := cgroups.Remove(t.Context(), parent); err != nil {
		t.Error(err)
	}
}

// A pod may be made anew while the one before it is still being removed: the last one takes the cgroup.
func TestCgroupGoesWithTheLastSandbox(t *testing.T) {
	s := newStation(t, "crun")
	cgroups, err := cgroup.Open(cgroup.DefaultRoot)
	if err != nil {
		t.Fatal(err)
	}
	parent := s.parent + "/handed-on"
	named := func(spec *pod.SandboxSpec) { spec.CgroupParent = parent }
	first := s.newPod(t, named)
	old := first.request("exec sleep 1000")
	first.start(old)
	second := s.newPod(t, named)
	now := second.request("exec sleep 1000")
	second.start(now)
	successor, err := native.New(s.opts) // which made none of them
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		pod *testPod
		key pod.Key
	}{{first, old.Spec.Key}, {second, now.Spec.Key}} {
		if !cgroups.Exists(parent) {
			t.Fatal("the cgroup went before the last sandbox")
		}
		if err := successor.RemoveContainer(t.Context(), c.key); err != nil {
			t.Fatal(err)
		}
		if err := successor.RemoveSandbox(t.Context(), c.pod.spec.Key); err != nil {
			t.Fatal(err)
		}
	}
	if cgroups.Exists(parent) {
		t.Error("the cgroup outlives its sandboxes")
	}
}

// A container that could not be removed yet keeps its sandbox's record: nobody else knows of the cgroup.
func TestSandboxIsNotForgottenBeforeItsContainers(t *testing.T) {
	s := newStation(t, "crun")
	cgroups, err := cgroup.Open(cgroup.DefaultRoot)
	if err != nil {
		t.Fatal(err)
	}
	parent := s.parent + "/named"
	p := s.newPod(t, func(spec *pod.SandboxSpec) { spec.CgroupParent = parent })
	req := p.request("exec sleep 1000")
	p.start(req)
	if err := p.RemoveSandbox(t.Context(), p.spec.Key); !errdefs.IsUnavailable(err) {
		t.Errorf("remove a sandbox with a container: %v", err)
	}
	if err := p.RemoveContainer(t.Context(), req.Spec.Key); err != nil {
		t.Fatal(err)
	}
	if err := p.RemoveSandbox(t.Context(), p.spec.Key); err != nil {
		t.Fatal(err)
	}
	if cgroups.Exists(parent) {
		t.Error("the cgroup outlives the sandbox")
	}
}

func TestManyPodsAtOnceLeaveNothing(t *testing.T) {
	s := newStation(t, "crun")
	before := nsOf(t, "net")
	t.Run("pods", func(t *testing.T) {
		for range 24 {
			t.Run("pod", func(t *testing.T) {
				t.Parallel()
				p := s.newPod(t, func(spec *pod.SandboxSpec) { spec.Hostname = string(spec.Key[:20]) })
				req := p.request("exec sleep 1000")
				p.start(req)
				if text, code := p.exec(req.Spec.Key, "hostname"); text != p.spec.Hostname || code != 0 {
					t.Errorf("exec prints %q, code %d, want %q", text, code, p.spec.Hostname)
				}
			})
		}
	})
	if left := s.leftovers(t); len(left) > 0 {
		t.Errorf("left behind %v", left)
	}
	if now := nsOf(t, "net"); now != before {
		t.Errorf("this process is in %s, was in %s", now, before)
	}
}
