package docker_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"

	"gantry/internal/cgroup"
	"gantry/internal/engine"
	"gantry/internal/engine/docker"
	"gantry/internal/pod"
)

// TestFilesOfTheCgroup is what becomes of unified resources: Docker is told what it has words for.
func TestFilesOfTheCgroup(t *testing.T) {
	for rule, tt := range map[string]struct {
		memory  int64
		unified map[string]string
		swap    int64
		pids    int64
		label   string
	}{
		"none is no label":                       {memory: 1 << 20, swap: 1 << 20},
		"a limit of processes":                   {unified: map[string]string{"pids.max": "7"}, pids: 7},
		"no swap beside a limit":                 {memory: 1 << 20, unified: map[string]string{"memory.swap.max": "0"}, swap: 1 << 20},
		"some swap beside a limit":               {memory: 1 << 20, unified: map[string]string{"memory.swap.max": "4096"}, swap: 1<<20 + 4096},
		"any swap beside a limit":                {memory: 1 << 20, unified: map[string]string{"memory.swap.max": "max"}, swap: -1},
		"swap without a limit is a file":         {unified: map[string]string{"memory.swap.max": "4096"}, label: `{"memory.swap.max":"4096"}`},
		"what Docker would take for all is too":  {unified: map[string]string{"pids.max": "0"}, label: `{"pids.max":"0"}`},
		"what the kubelet asks by default on v2": {memory: 1 << 20, unified: map[string]string{"memory.oom.group": "1", "memory.swap.max": "0"}, swap: 1 << 20, label: `{"memory.oom.group":"1"}`},
	} {
		t.Run(rule, func(t *testing.T) {
			n, err := docker.NewNode(system.Info{CgroupDriver: "cgroupfs", CgroupVersion: "2", SwapLimit: true}, "1.45")
			if err != nil {
				t.Fatal(err)
			}
			r := request()
			r.Spec.Resources = pod.Resources{MemoryLimit: tt.memory, Unified: tt.unified}
			o, err := n.Container(r)
			if err != nil {
				t.Fatal(err)
			}
			var pids int64
			if p := o.HostConfig.PidsLimit; p != nil {
				pids = *p
			}
			if o.HostConfig.MemorySwap != tt.swap || pids != tt.pids || o.Config.Labels["io.gantry.cgroup"] != tt.label {
				t.Errorf("swap %d, processes %d, label %s", o.HostConfig.MemorySwap, pids, o.Config.Labels["io.gantry.cgroup"])
			}
		})
	}
	v1, err := docker.NewNode(system.Info{CgroupDriver: "cgroupfs", CgroupVersion: "1"}, "1.45")
	if err != nil {
		t.Fatal(err)
	}
	r := request()
	r.Spec.Resources.Unified = map[string]string{"memory.oom.group": "1"}
	if _, err := v1.Container(r); !errdefs.IsInvalidArgument(err) {
		t.Errorf("on v1: %v", err)
	}
}

// v2Node is a Docker Engine that is played on a node with cgroup v2, and has one container.
type v2Node struct {
	root  string       // of the node's cgroups
	state atomic.Value // of the container: "created", "running" or "exited"
	label atomic.Value // of the container, the files
}

// start makes the container's cgroup, as Docker does.
func (n *v2Node) start() error {
	dir := filepath.Join(n.root, "pod", "new")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, value := range map[string]string{"cgroup.procs": "", "memory.oom.group": "0\n", "memory.high": "max\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600); err != nil {
			return err
		}
	}
	n.state.Store("running")
	return nil
}

func (n *v2Node) file(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(n.root, "pod", "new", name))
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(string(data))
}

func (n *v2Node) inspect() map[string]any {
	state := n.state.Load().(string)
	return map[string]any{
		"Id": "new", "State": map[string]any{"Status": state, "Running": state == "running", "Pid": 1},
		"Config": map[string]any{"Labels": map[string]string{"io.gantry.cgroup": n.label.Load().(string)}}, "HostConfig": map[string]any{"CgroupParent": "/pod"},
	}
}

func (n *v2Node) serve(t *testing.T) http.Handler {
	mux := http.NewServeMux()
	answer := func(pattern string, v func(*http.Request) any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(v(r))
		})
	}
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("API-Version", "1.45") })
	answer("GET /v1.45/info", func(*http.Request) any {
		return system.Info{CgroupDriver: "cgroupfs", CgroupVersion: "2", SwapLimit: true}
	})
	answer("POST /v1.45/containers/create", func(r *http.Request) any {
		var asked struct{ Labels map[string]string }
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			t.Error(err)
		}
		n.label.Store(asked.Labels["io.gantry.cgroup"])
		return container.CreateResponse{ID: "new"}
	})
	answer("GET /v1.45/containers/new/json", func(*http.Request) any { return n.inspect() })
	answer("POST /v1.45/containers/new/update", func(*http.Request) any { return map[string]any{} })
	answer("GET /v1.45/containers/json", func(*http.Request) any {
		return []any{map[string]any{"Id": "new", "Labels": map[string]string{docker.LabelKey: "0f0f", "io.kubernetes.docker.type": "container"}}}
	})
	mux.HandleFunc("POST /v1.45/containers/new/start", func(w http.ResponseWriter, _ *http.Request) {
		if err := n.start(); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /v1.45/containers/new/kill", func(w http.ResponseWriter, _ *http.Request) {
		n.state.Store("exited")
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

// engine is one on the node, as a server that starts has it.
func (n *v2Node) engine(t *testing.T) *docker.Engine {
	t.Helper()
	e := overHTTP(t, n.serve(t))
	f, err := cgroup.Open(n.root)
	if err != nil {
		t.Fatal(err)
	}
	e.UseCgroups(f)
	return e
}

func newV2Node(t *testing.T) *v2Node {
	t.Helper()
	n := &v2Node{root: t.TempDir()}
	n.state.Store("created")
	n.label.Store("")
	if err := os.WriteFile(filepath.Join(n.root, "cgroup.controllers"), []byte("memory\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

// created makes the node's container with files of its cgroup.
func created(t *testing.T, e *docker.Engine, files map[string]string) *engine.Create {
	t.Helper()
	r := request()
	r.Spec.Key, r.Sandbox.Spec.CgroupParent = "0f0f", "/pod"
	r.Spec.Resources.Unified = files
	uid := int64(0)
	r.Spec.Security.RunAsUser = &uid
	if _, err := e.CreateContainer(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestFilesAreWrittenAfterTheStart starts a container with files that Docker has no word for, and changes them.
func TestFilesAreWrittenAfterTheStart(t *testing.T) {
	n := newV2Node(t)
	files := map[string]string{"memory.oom.group": "1", "memory.high": "4096"}
	r := created(t, n.engine(t), files)
	e := n.engine(t) // one that knows the container from Docker alone
	if _, err := e.StartContainer(t.Context(), r.Spec.Key); err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		if got := n.file(t, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	// Docker's update has systemd write its own value.
	if err := os.WriteFile(filepath.Join(n.root, "pod", "new", "memory.oom.group"), []byte("0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := e.UpdateContainer(t.Context(), r.Spec.Key, &pod.Resources{Unified: map[string]string{"memory.high": "8192"}}); err != nil {
		t.Fatal(err)
	}
	if high, group := n.file(t, "memory.high"), n.file(t, "memory.oom.group"); high != "8192" || group != "1" {
		t.Errorf("memory.high is %s, memory.oom.group %s after the update", high, group)
	}
	if _, err := n.engine(t).List(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := n.file(t, "memory.high"); got != "8192" {
		t.Errorf("memory.high is %s when the server has started again", got)
	}
}

// TestFilesAreWrittenByTheNextServer has one die between Docker's start and the files.
func TestFilesAreWrittenByTheNextServer(t *testing.T) {
	n := newV2Node(t)
	created(t, n.engine(t), map[string]string{"memory.oom.group": "1"})
	if err := n.start(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.engine(t).List(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := n.file(t, "memory.oom.group"); got != "1" {
		t.Errorf("memory.oom.group is %s", got)
	}
}

// TestFileThatIsNotThere has the kernel lack one: the container must not run without its limit.
func TestFileThatIsNotThere(t *testing.T) {
	n := newV2Node(t)
	e := n.engine(t)
	r := created(t, e, map[string]string{"memory.none": "1"})
	if _, err := e.StartContainer(t.Context(), r.Spec.Key); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "memory.none") {
		t.Errorf("%v; want ErrInvalidArgument and the file's name", err)
	}
	if state := n.state.Load(); state != "exited" {
		t.Errorf("the container is %s", state)
	}
}
