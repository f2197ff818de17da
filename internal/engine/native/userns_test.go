package native_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/engine/native"
	"gantry/internal/idmap"
	"gantry/internal/pod"
)

func userNamespace(first uint32) *pod.UserNamespace {
	ids := []pod.IDMapping{{HostID: first, Length: 65536}}
	return &pod.UserNamespace{UIDs: ids, GIDs: ids}
}

// newMappedPod makes a sandbox with a user namespace of its own.
func newMappedPod(t *testing.T, runtime string, changes ...func(*pod.SandboxSpec)) *testPod {
	t.Helper()
	s := newStation(t, runtime)
	// Ids that are somebody else's must be able to reach the root file system.
	if err := os.Chmod(filepath.Dir(s.dir), 0o711); err != nil {
		t.Fatal(err)
	}
	return s.newPod(t, append([]func(*pod.SandboxSpec){func(spec *pod.SandboxSpec) {
		spec.Namespaces.User = userNamespace(100000)
	}}, changes...)...)
}

func TestContainersInAUserNamespace(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	file := filepath.Join(data, "file")
	if err := errors.Join(os.Mkdir(data, 0o755), os.WriteFile(file, []byte("from the node\n"), 0o600), os.Chown(file, 1000, 1000)); err != nil {
		t.Fatal(err)
	}
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			p := newMappedPod(t, runtime, func(spec *pod.SandboxSpec) {
				spec.Sysctls = map[string]string{"kernel.shmmax": "4096000"}
			})
			ids := p.spec.Namespaces.User
			text, exit := p.run(`awk '{print $1, $2, $3}' /proc/self/uid_map /proc/self/gid_map
				stat -c '%u:%g %n' / /bin/sh /home/gantry /data/file /dev/shm /work
				touch /mine /dev/shm/mine && stat -c '%u:%g %n' /mine; chown 1000:1000 /mine && echo changed
				cat /proc/sys/kernel/shmmax; hostname inner && hostname
				ip link set lo down && echo network; mount -t tmpfs none /tmp 2>/dev/null && echo mounted
				echo written > /dev/stdout`,
				func(c *pod.ContainerSpec) {
					c.WorkingDir = "/work"
					c.Security.AddCaps = []string{"NET_ADMIN", "SYS_ADMIN"}
					c.Mounts = []pod.Mount{{ContainerPath: "/data", HostPath: data, UIDs: ids.UIDs, GIDs: ids.GIDs}}
				})
			want := strings.Join([]string{
				"0 100000 65536", "0 100000 65536",
				"0:0 /", "0:0 /bin/sh", "1000:1000 /home/gantry", "1000:1000 /data/file", "0:0 /dev/shm", "0:0 /work",
				"0:0 /mine", "changed", "4096000", "inner", "network", "mounted", "written",
			}, "\n")
			if text != want || exit.Code != 0 {
				t.Errorf("exit %+v, printed\n%s\nwant\n%s", exit, text, want)
			}
			if mounted, _ := filepath.Glob(filepath.Join(p.dir, "native/containers/*/mounts")); len(mounted) > 0 {
				t.Errorf("left mounted %v", mounted)
			}
			if got := p.Features(t.Context())[runtime]; !got.UserNamespaces {
				t.Errorf("features %+v", got)
			}
		})
	}
}

func TestSharedPIDNamespaceInAUserNamespace(t *testing.T) {
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			p := newMappedPod(t, runtime, func(spec *pod.SandboxSpec) { spec.Namespaces.PID = pod.NamespacePod })
			text, exit := p.run(psOnce("/[p]ause pause") + "; cat /proc/self/uid_map")
			if exit.Code != 0 || !strings.Contains(text, "1 /pause pause") || !strings.Contains(text, "100000") {
				t.Errorf("exit %+v, printed\n%s", exit, text)
			}
		})
	}
}

func TestPodsNeverShareIDs(t *testing.T) {
	p := newMappedPod(t, "crun")
	clash := &pod.SandboxSpec{Key: pod.NewKey(), CgroupParent: p.parent, Namespaces: p.spec.Namespaces}
	clash.Namespaces.User = userNamespace(165535)
	refused := func(e *native.Engine, when string) {
		t.Helper()
		_, err := e.CreateSandbox(t.Context(), clash, engine.Files{})
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), p.spec.Key.Short()) {
			t.Errorf("%s: %v, want a refusal that names the other sandbox", when, err)
		}
	}
	refused(p.Engine, "one id in common")
	successor, err := native.New(p.opts)
	if err != nil {
		t.Fatal(err)
	}
	refused(successor, "after a restart")
	if err := p.StopSandbox(t.Context(), p.spec.Key); err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateSandbox(t.Context(), clash, engine.Files{}); err != nil {
		t.Errorf("after the other was stopped: %v", err)
	}
	if err := p.RemoveSandbox(t.Context(), clash.Key); err != nil {
		t.Error(err)
	}
}

// unmapped are layers on a file system whose ids the kernel does not map.
type unmapped struct{ native.Rootfs }

func (unmapped) MapsIDs(string) error { return errors.New("the file system maps no ids") }

// A pod that could not have its containers is refused before anything of it is made.
func TestUserNamespaceThatCannotWorkIsRefused(t *testing.T) {
	s := newStation(t, "crun")
	opts := s.opts
	opts.Rootfs = unmapped{opts.Rootfs}
	e, err := native.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	spec := &pod.SandboxSpec{Key: pod.NewKey(), Namespaces: pod.Namespaces{Network: pod.NamespacePod, IPC: pod.NamespacePod, User: userNamespace(100000)}}
	_, err = e.CreateSandbox(t.Context(), spec, engine.Files{})
	if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "userns_options") {
		t.Errorf("error %v", err)
	}
	if inv, err := e.List(t.Context()); err != nil || len(inv.Sandboxes) > 0 {
		t.Errorf("left %+v, error %v", inv.Sandboxes, err)
	}
}

func TestMountWithOtherIDsThanThePodsIsRefused(t *testing.T) {
	p := newMappedPod(t, "crun")
	req := p.request("true", func(c *pod.ContainerSpec) {
		other := userNamespace(300000)
		c.Mounts = []pod.Mount{{ContainerPath: "/data", HostPath: t.TempDir(), UIDs: other.UIDs, GIDs: other.GIDs}}
	})
	if _, err := p.CreateContainer(t.Context(), req); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "uidMappings") {
		t.Errorf("CreateContainer: %v", err)
	}
}

func TestWhatACrashLeftMountedIsNotDeleted(t *testing.T) {
	p := newMappedPod(t, "crun")
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	key := pod.NewKey()
	target := filepath.Join(p.opts.StateDir, "containers", string(key), "mounts", "0")
	userns := filepath.Join(p.opts.StateDir, "sandboxes", string(p.spec.Key), "user")
	if err := errors.Join(os.MkdirAll(target, 0o700), idmap.Mount(data, target, userns)); err != nil {
		t.Fatal(err)
	}
	if err := p.RemoveContainer(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(data, "precious")); err != nil {
		t.Errorf("the client's file is gone: %v", err)
	}
}
