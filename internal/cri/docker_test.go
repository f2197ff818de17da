package cri_test

import (
	"archive/tar"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"gantry/internal/engine"
	"gantry/internal/engine/docker"
	"gantry/internal/lab"
	"gantry/internal/pod"
)

func TestMain(m *testing.M) { lab.Main(m) }

// dockerd answers as far as an engine needs it to be asked for something, and keeps what it was asked for.
type dockerd struct {
	*docker.Engine
	version string // as people say it

	mu    sync.Mutex
	asked []string // guarded by mu
}

// Both Docker Engines, as docs/docker-fields.md has them.
func dockerds(t *testing.T) []*dockerd {
	return []*dockerd{newDockerd(t, "20.10", "1.41"), newDockerd(t, "today's", "1.56")}
}

const dockerID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func newDockerd(t *testing.T, version, api string) *dockerd {
	t.Helper()
	d := &dockerd{version: version}
	info := system.Info{
		CgroupDriver: "cgroupfs", CgroupVersion: "2", ServerVersion: version, SwapLimit: true,
		SecurityOptions: []string{"name=seccomp,profile=builtin", "name=apparmor", "name=selinux"},
	}
	state := map[string]any{"Status": "running", "Running": true, "Pid": 1}
	inspect := map[string]any{"Id": dockerID, "State": state, "Config": map[string]any{}, "HostConfig": map[string]any{}}
	mux := http.NewServeMux()
	answer := func(pattern string, v any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(pattern, "POST") {
				d.keep(r)
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(v)
		})
	}
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("API-Version", api) })
	answer("GET /v"+api+"/info", info)
	answer("GET /v"+api+"/images/{name...}", map[string]any{"Id": "sha256:abc"})
	answer("POST /v"+api+"/images/create", map[string]any{})
	answer("GET /v"+api+"/containers/json", []any{map[string]any{"Id": dockerID}})
	answer("GET /v"+api+"/containers/{id}/json", inspect)
	answer("POST /v"+api+"/containers/create", map[string]any{"Id": dockerID})
	answer("POST /v"+api+"/containers/{id}/update", map[string]any{})
	answer("DELETE /v"+api+"/containers/{id}", nil)
	mux.HandleFunc("GET /v"+api+"/containers/{id}/archive", archive)
	s := httptest.NewUnstartedServer(mux)
	dir, err := os.MkdirTemp("", "dockerd") // short: a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if s.Listener, err = net.Listen("unix", filepath.Join(dir, "sock")); err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Close)
	pins := filepath.Join(dir, "netns")
	d.Engine, err = docker.New(docker.Options{
		Endpoint: "unix://" + filepath.Join(dir, "sock"), NetNSDir: pins, Logs: noLogs{}, Patience: time.Minute, // it never hangs
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(pins, unix.MNT_DETACH) })
	t.Cleanup(func() { _ = d.Close(context.Background()) })
	return d
}

// archive answers with a file of the container's image, in which the user 1000 is in a second group.
func archive(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("path")
	content := map[string]string{"/etc/passwd": "user:x:1000:1000::/:\n", "/etc/group": "crew:x:500:user\n"}[name]
	stat, _ := json.Marshal(container.PathStat{Name: filepath.Base(name), Size: int64(len(content))})
	w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(stat))
	t := tar.NewWriter(w)
	_ = t.WriteHeader(&tar.Header{Name: filepath.Base(name), Typeflag: tar.TypeReg, Size: int64(len(content)), Mode: 0o644})
	_, _ = io.WriteString(t, content)
	_ = t.Close()
}

func (d *dockerd) keep(r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, fmt.Sprint(r.URL.Path, r.URL.Query(), r.Header["X-Registry-Auth"], string(body)))
}

func (d *dockerd) wasAsked() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.asked) > 0
}

// noLogs are logs that dockerd is told of and nobody writes.
type noLogs struct{}

func (noLogs) Config(_ context.Context, _ pod.Key, path string, _ *pod.LogBounds) (driver string, options map[string]string, err error) {
	return "to", map[string]string{"path": path}, nil
}
func (noLogs) Follow(context.Context, pod.Key, string) error { return nil }
func (noLogs) Reopen(context.Context, pod.Key) error         { return nil }
func (noLogs) Close(context.Context, pod.Key) error          { return nil }

// errBefore is what comes before Docker is asked.
var errBefore = errors.New("not asked")

// said is what Docker is asked for when a client asks for req.
func (d *dockerd) said(t *testing.T, req proto.Message) (string, error) {
	t.Helper()
	d.mu.Lock()
	d.asked = nil
	d.mu.Unlock()
	m := node()
	name := string(req.ProtoReflect().Descriptor().Name())
	method := strings.TrimSuffix(name, "Request")
	_, err := ask(t, m, method, req)
	if err != nil {
		return "", errors.Join(errBefore, err)
	}
	const key = pod.Key("0f0f0f0f0f0f0f0f")
	switch method {
	case "RunPodSandbox":
		spec := m.pods[len(m.pods)-1].Spec
		spec.Key = key
		if spec.CgroupParent == "" {
			spec.CgroupParent = "/none" // it would make a real one
		}
		if _, err = d.CreateSandbox(t.Context(), &spec, engine.Files{}); d.wasAsked() {
			err = nil // nothing runs here
		}
	case "CreateContainer":
		c := m.containers[len(m.containers)-1]
		spec := c.Spec
		spec.Key, spec.LogPath = key, spec.LogName
		sandbox := &pod.Sandbox{ID: c.SandboxID, Spec: pod.SandboxSpec{CgroupParent: "/pod", Namespaces: spec.Namespaces}}
		_, err = d.CreateContainer(t.Context(), &engine.Create{Spec: &spec, Sandbox: sandbox, Image: &pod.Image{ID: spec.ImageID}})
	case "UpdateContainerResources":
		err = d.UpdateContainer(t.Context(), key, m.update)
	case "PullImage":
		_, err = d.Images().Pull(t.Context(), m.pulled)
	default:
		t.Fatalf("nobody says what Docker is asked for %s", method)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.asked) == 0 && err == nil {
		err = errors.New("docker was asked for nothing")
	}
	return strings.Join(d.asked, "\n"), err
}
