package docker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"gantry/internal/engine"
	"gantry/internal/engine/docker"
	"gantry/internal/labdocker"
	"gantry/internal/pod"
)

// TestPluginsLimitsAreApplied reads back what plugins may want of a container beyond the CRI: from Docker, and from the
// kernel as far as it tells.
func TestPluginsLimitsAreApplied(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			s := newStation(t, labdocker.Options{Version: v})
			dir, pids, swappiness, deaf := t.TempDir(), int64(55), uint64(5), true
			a := &pod.Adjustment{
				Rlimits: []pod.Rlimit{{Type: "RLIMIT_NOFILE", Hard: 200, Soft: 100}},
				Mounts: []pod.MountPoint{
					{Destination: "/bound", Type: "bind", Source: dir, Options: []string{"rbind", "ro"}},
					{Destination: "/scratch", Type: "tmpfs"},
				},
				Resources: &pod.Resources{MemoryLimit: 64 << 20, Extra: pod.ExtraResources{
					PidsLimit: &pids, Swappiness: &swappiness, DisableOOMKiller: &deaf, MemoryReservation: 32 << 20,
				}},
			}
			if v == labdocker.Current {
				a.Annotations = pod.Edit{Set: map[string]string{"vendor.example/a": "b"}}
			}
			key := s.adjusted(t, a)
			started, err := s.StartContainer(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			id := strings.TrimSpace(s.dockerd.Docker("ps", "-q", "--filter", "label="+docker.LabelKey+"="+string(key)))
			has := s.hostConfig(t, id)
			for what, ok := range map[string]bool{
				"rlimits":            len(has.Ulimits) == 1 && *has.Ulimits[0] == container.Ulimit{Name: "nofile", Soft: 100, Hard: 200},
				"pids":               has.PidsLimit != nil && *has.PidsLimit == pids,
				"memory limit":       has.Memory == 64<<20,
				"memory reservation": has.MemoryReservation == 32<<20,
				"swappiness":         has.MemorySwappiness != nil && *has.MemorySwappiness == 5,
				"no OOM killer":      has.OomKillDisable != nil && *has.OomKillDisable,
				"annotations":        v == labdocker.Debian || has.Annotations["vendor.example/a"] == "b",
			} {
				if !ok {
					t.Errorf("docker has not: %s\n%+v", what, has)
				}
			}
			limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", started.Pid))
			if err != nil || !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max open files 100 200 files") {
				t.Errorf("limits of the process: %s, %v", limits, err)
			}
			mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", started.Pid))
			if err != nil || !strings.Contains(string(mounts), " /bound ") || !strings.Contains(string(mounts), " /scratch tmpfs ") {
				t.Errorf("mounts of the process: %s, %v", mounts, err)
			}
			for file, want := range map[string]string{
				"pids/pids.max": "55", "memory/memory.soft_limit_in_bytes": "33554432", "memory/memory.swappiness": "5",
			} {
				controller, name, _ := strings.Cut(file, "/")
				got, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, started.CgroupPath, name))
				if os.IsNotExist(err) {
					continue // cgroup v2 has other files
				}
				if strings.TrimSpace(string(got)) != want || err != nil {
					t.Errorf("%s is %s, %v", file, got, err)
				}
			}
		})
	}
}

// hostConfig is what the daemon says of a container: the old command line does not know all of it.
func (s *station) hostConfig(t *testing.T, id string) container.HostConfig {
	t.Helper()
	r, err := s.dockerd.Client().Get("http://docker/containers/" + id + "/json")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var c struct{ HostConfig container.HostConfig }
	if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
		t.Fatal(err)
	}
	return c.HostConfig
}

// adjusted makes a container that plugins have adjusted, in a pod of its own.
func (s *station) adjusted(t *testing.T, a *pod.Adjustment) pod.Key {
	t.Helper()
	sandbox := &pod.Sandbox{Spec: pod.SandboxSpec{
		Key: pod.NewKey(), Metadata: pod.Metadata{Name: "adjusted", Namespace: "lab", UID: "uid"}, CgroupParent: s.dockerd.Cgroup,
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, IPC: pod.NamespacePod},
	}}
	made, err := s.CreateSandbox(t.Context(), &sandbox.Spec, engine.Files{})
	if err != nil {
		t.Fatal(err)
	}
	sandbox.ID = made.ID
	spec := &pod.ContainerSpec{Key: pod.NewKey(), Sandbox: sandbox.Spec.Key, Name: "main", Command: []string{"sleep", "1000"}, Namespaces: sandbox.Spec.Namespaces}
	if _, err = s.CreateContainer(t.Context(), &engine.Create{Spec: spec, Sandbox: sandbox, Image: s.image, Adjust: a}); err != nil {
		t.Fatal(err)
	}
	return spec.Key
}

// TestDiscardedLimitIsRefused has a dockerd that discards what the kernel lacks, and only warns of it.
func TestDiscardedLimitIsRefused(t *testing.T) {
	removed := make(chan string, 1)
	mux := http.NewServeMux()
	answer := func(pattern string, v any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(v)
		})
	}
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("API-Version", "1.45") })
	answer("GET /v1.45/info", system.Info{CgroupDriver: "cgroupfs", CgroupVersion: "2"})
	answer("POST /v1.45/containers/create", container.CreateResponse{ID: "new", Warnings: []string{"Your kernel does not support memory swappiness capabilities"}})
	answer("GET /v1.45/containers/new/json", map[string]any{"Id": "new", "State": map[string]any{}, "Config": map[string]any{}, "HostConfig": map[string]any{}})
	answer("GET /v1.45/containers/json", []any{map[string]any{"Id": "new"}})
	mux.HandleFunc("DELETE /v1.45/containers/{id}", func(_ http.ResponseWriter, r *http.Request) { removed <- r.PathValue("id") })
	e := overHTTP(t, mux)
	swappiness := uint64(5)
	r := request()
	r.Adjust = &pod.Adjustment{Resources: &pod.Resources{Extra: pod.ExtraResources{Swappiness: &swappiness}}}
	_, err := e.CreateContainer(t.Context(), r)
	if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "swappiness") {
		t.Errorf("%v; want ErrNotImplemented, and the field", err)
	}
	if got := <-removed; got != "new" {
		t.Errorf("%s was removed", got)
	}
}

// overHTTP is an engine on a Docker Engine that is played.
func overHTTP(t *testing.T, daemon http.Handler) *docker.Engine {
	t.Helper()
	dir, err := os.MkdirTemp("", "dockerd") // short: a unix socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	server := httptest.NewUnstartedServer(daemon)
	if server.Listener, err = net.Listen("unix", filepath.Join(dir, "sock")); err != nil {
		t.Fatal(err)
	}
	server.Start()
	t.Cleanup(server.Close)
	api, err := client.New(client.WithHost("unix://" + filepath.Join(dir, "sock")))
	if err != nil {
		t.Fatal(err)
	}
	pins := filepath.Join(dir, "netns")
	e, err := docker.New(docker.Options{
		Endpoint: "unix://" + filepath.Join(dir, "sock"), NetNSDir: pins, Patience: patience, Logs: &plainLogs{api: api, paths: make(map[pod.Key]string)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(pins, unix.MNT_DETACH); _ = e.Close(context.Background()) })
	return e
}
