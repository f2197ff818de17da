package lifecycle_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

func TestPodFromRunToRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		spec := sandbox("web")
		spec.Hostname = "web-0"
		spec.DNS = &pod.DNS{Servers: []string{"10.96.0.10"}, Searches: []string{"a", "b"}, Options: []string{"ndots:5"}}
		spec.LogDirectory = filepath.Join(w.dir, "logs", "web")
		id, err := m.RunPod(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		sb, err := m.Pod(t.Context(), id)
		if err != nil || sb.State != pod.SandboxReady || sb.ID != id || sb.Network == nil || sb.NetNS == "" {
			t.Fatalf("status %+v, %v", sb, err)
		}
		if !exists(spec.LogDirectory) {
			t.Error("the log directory was not made")
		}
		dir := filepath.Join(w.dir, "state", "pods", string(sb.Spec.Key))
		for file, want := range map[string]string{
			"resolv.conf": "search a b\nnameserver 10.96.0.10\noptions ndots:5\n",
			"hostname":    "web-0\n",
		} {
			if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(got) != want {
				t.Errorf("%s: %q, %v; want %q", file, got, err, want)
			}
		}
		if hosts, err := os.ReadFile(filepath.Join(dir, "hosts")); err != nil || !strings.Contains(string(hosts), "192.0.2.7\tweb-0\n") {
			t.Errorf("hosts: %q, %v; want the pod's address and name", hosts, err)
		}
		cid := runContainer(t, m, id, "main", "sleep")
		if c := stateOf(t, m, cid); c.State != pod.ContainerRunning || c.Pid == 0 || c.StartedAt.IsZero() || c.SandboxID != id {
			t.Errorf("container %+v", c)
		}
		for range 2 {
			if err := m.StopPod(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		if s := podState(m, id); s != "notready" {
			t.Errorf("a stopped pod is %s", s)
		}
		if c := stateOf(t, m, cid); c.State != pod.ContainerExited || c.ExitCode != 137 || c.Reason != pod.ReasonError {
			t.Errorf("the container of a stopped pod: %+v", c)
		}
		if _, err := m.CreateContainer(t.Context(), id, container("late")); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("a container in a stopped pod: %v; want ErrFailedPrecondition", err)
		}
		for range 2 {
			if err := m.RemovePod(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := m.Pod(t.Context(), id); !errdefs.IsNotFound(err) {
			t.Errorf("status of a removed pod: %v; want ErrNotFound", err)
		}
		if _, err := m.Container(t.Context(), cid); !errdefs.IsNotFound(err) {
			t.Errorf("status of a removed container: %v; want ErrNotFound", err)
		}
		w.mustBeEmpty("after removal")
	})
}

func TestRemovePodByForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		id := runPod(t, m, "web")
		runContainer(t, m, id, "stubborn", "ignore", "TERM")
		createContainer(t, m, id, "created")
		runContainer(t, m, id, "exited", "exit", "1")
		if err := m.RemovePod(t.Context(), id[:12]); err != nil {
			t.Fatal(err)
		}
		w.mustBeEmpty("after a removal by force, by prefix")
	})
}

func TestHostNetworkPodIsNotAttached(t *testing.T) {
	w := newWorld(t)
	w.net.fail("Attach", errdefs.ErrInternal)
	w.net.fail("Detach", errdefs.ErrInternal)
	m := w.start()
	spec := sandbox("node")
	spec.Namespaces.Network = pod.NamespaceNode
	id, err := m.RunPod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.RemovePod(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	w.mustBeEmpty("of a pod on the host's network")
}

// TestWhatIsMountedBelowAPodIsNotDeleted mounts a tmpfs: it needs root.
func TestWhatIsMountedBelowAPodIsNotDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		id := runPod(t, m, "web")
		sb, err := m.Pod(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(w.dir, "state", "pods", string(sb.Spec.Key), "engine", "shm")
		if err = os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err = unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal("mount:", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		precious := filepath.Join(dir, "precious")
		if err = os.WriteFile(precious, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := m.RemovePod(t.Context(), id); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%v; want ErrFailedPrecondition that names the mount", err)
		}
		if !exists(precious) {
			t.Error("what was mounted is deleted")
		}
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Minute) // of the bubble's clock
		w.mustBeEmpty("once nothing is mounted")
	})
}

func TestUnknownHandlerNamesItself(t *testing.T) {
	w := newWorld(t)
	spec := sandbox("web")
	spec.Handler = "kata"
	_, err := w.start().RunPod(t.Context(), spec)
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `"kata"`) {
		t.Errorf("%v; want ErrInvalidArgument that names the handler", err)
	}
	w.mustBeEmpty("of an unknown handler")
}

func TestLookup(t *testing.T) {
	w := newWorld(t)
	m := w.start()
	a, b := runPod(t, m, "a"), runPod(t, m, "b")
	if a == b || len(m.Pods(t.Context())) != 2 {
		t.Fatalf("pods %s and %s, listed %d", a, b, len(m.Pods(t.Context())))
	}
	if _, err := m.Pod(t.Context(), "sb-"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an ambiguous prefix: %v; want ErrInvalidArgument", err)
	}
	if _, err := m.Pod(t.Context(), ""); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no id: %v; want ErrInvalidArgument", err)
	}
	if _, err := m.Pod(t.Context(), "nobody"); !errdefs.IsNotFound(err) {
		t.Errorf("an unknown id: %v; want ErrNotFound", err)
	}
	for what, err := range map[string]error{
		"stop pod":         m.StopPod(t.Context(), "nobody"),
		"remove pod":       m.RemovePod(t.Context(), "nobody"),
		"stop container":   m.StopContainer(t.Context(), "nobody", time.Second),
		"remove container": m.RemoveContainer(t.Context(), "nobody"),
	} {
		if err != nil {
			t.Errorf("%s that is not there: %v", what, err)
		}
	}
	if err := m.StartContainer(t.Context(), "nobody"); !errdefs.IsNotFound(err) {
		t.Errorf("start what is not there: %v; want ErrNotFound", err)
	}
}
