package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

// orders are those of test/e2e/plugin.
type orders struct {
	Name, Socket, Log string             `json:",omitempty"`
	Hang, Die, Deny   string             `json:",omitempty"`
	Policy            *api.FailurePolicy `json:",omitempty"`
	Adjust            *api.ContainerAdjustment
	Update, Resize    *api.LinuxResources
	Ask               string `json:",omitempty"`
	Unasked           *api.LinuxResources
	Validates         bool `json:",omitempty"`
}

// told is a line that the plugin writes.
type told struct {
	Event      string
	Pod        *api.PodSandbox
	Container  *api.Container
	Pods       []*api.PodSandbox
	Containers []*api.Container
	Failed     []string
}

// pluginBinary builds the plugin, once.
var pluginBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "gantry-nri")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "plugin")
	build := exec.Command("go", "build", "-o", path, "gantry/test/e2e/plugin")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", errors.Join(err, errors.New(string(out)))
	}
	return path, nil
})

func plugin(t *testing.T) string {
	t.Helper()
	path, err := pluginBinary()
	if err != nil {
		t.Fatalf("build the plugin: %v", err)
	}
	return path
}

// install makes a plugin one that the server starts.
func install(t *testing.T, n *node.Node, o orders) {
	t.Helper()
	dir, conf := filepath.Join(n.Root, "nri"), filepath.Join(n.Root, "nri.d")
	data, err := json.Marshal(o)
	err = errors.Join(err, os.MkdirAll(dir, 0o755), os.MkdirAll(conf, 0o755),
		os.Link(plugin(t), filepath.Join(dir, o.Name)), os.WriteFile(filepath.Join(conf, o.Name+".conf"), data, 0o600))
	if err != nil {
		t.Fatal(err)
	}
}

// join starts a plugin that connects by itself, and waits until it is one of the server's.
func join(t *testing.T, n *node.Node, o orders) {
	t.Helper()
	launchPlugin(t, n, o)
	n.Eventually("plugin "+o.Name+" is connected", func() bool { return connected(n, o.Name) })
}

// joinQuickly is join where plugins must answer sooner than they always can: one that was too slow tries again.
func joinQuickly(t *testing.T, n *node.Node, o orders) {
	t.Helper()
	ended := launchPlugin(t, n, o)
	n.Eventually("plugin "+o.Name+" is connected", func() bool {
		select {
		case <-ended:
			ended = launchPlugin(t, n, o)
		default:
		}
		return connected(n, o.Name)
	})
}

// launchPlugin starts a plugin that connects by itself. Ended is closed when its process has ended.
func launchPlugin(t *testing.T, n *node.Node, o orders) (ended <-chan struct{}) {
	t.Helper()
	o.Socket = n.NRISocket()
	cmd := exec.Command(plugin(t), n.WriteJSON(o.Name, o))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		if t.Failed() {
			t.Logf("plugin %s: %s", o.Name, &stderr)
		}
	})
	return done
}

func connected(n *node.Node, name string) bool {
	return slices.ContainsFunc(strings.Split(n.Gantry("plugins"), "\n"), func(line string) bool {
		f := strings.Fields(line)
		return len(f) > 1 && f[0] == name && f[1] == "connected"
	})
}

// heard reads what a plugin was told. A last line without its end is still being written.
func heard(t *testing.T, path string) []told {
	t.Helper()
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var all []told
	for line := range bytes.Lines(data) {
		if !bytes.HasSuffix(line, []byte{'\n'}) {
			break
		}
		var l told
		if err := json.Unmarshal(line, &l); err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

func events(all []told) []string {
	var names []string
	for _, l := range all {
		names = append(names, l.Event)
	}
	return names
}

// A plugin that the server starts adds a mount and a variable, and hears of the whole life of a pod, in
// order, each once; one that joins later is shown what runs, and so is the first after the server was
// killed.
func TestPlugins(t *testing.T) {
	for _, env := range environments {
		t.Run(env.name, func(t *testing.T) {
			n := node.Prepare(t, env.options)
			data := filepath.Join(n.Root, "data")
			if err := errors.Join(os.Mkdir(data, 0o755), os.WriteFile(filepath.Join(data, "hello"), []byte("from the plugin"), 0o600)); err != nil {
				t.Fatal(err)
			}
			first := orders{Name: "10-first", Log: filepath.Join(n.Root, "first.log"), Adjust: &api.ContainerAdjustment{
				Mounts: []*api.Mount{{Destination: "/data", Type: "bind", Source: data, Options: []string{"rbind", "ro"}}},
				Env:    []*api.KeyValue{{Key: "ADDED", Value: "by a plugin"}},
			}}
			install(t, n, first)
			n.Restart()
			ref := warm(t, n)
			leavesNothing(t, n)
			if err := os.Remove(first.Log); err != nil {
				t.Fatal(err)
			}

			pod, container := n.Launch(n.Sandbox("one"), node.Container("main", n.Pull(ref), "sleep", "100000"))
			if got := n.Exec(container, "sh", "-c", "cat /data/hello; echo; echo $ADDED"); got != "from the plugin\nby a plugin\n" {
				t.Errorf("in the container: %q", got)
			}
			if said := n.Gantry("doctor", "--network", "builtin", "--nri-socket", n.NRISocket()); !strings.Contains(said, "NRI plugin 10-first is connected") {
				t.Errorf("gantry doctor: %s", said)
			}
			late := orders{Name: "20-late", Log: filepath.Join(n.Root, "late.log")}
			join(t, n, late)
			shown := heard(t, late.Log)[0]
			if len(shown.Pods) != 1 || len(shown.Containers) != 1 || shown.Containers[0].Id != container || !slices.Contains(shown.Containers[0].Env, "ADDED=by a plugin") {
				t.Errorf("the late plugin was shown %+v", shown)
			}

			n.Kill()
			n.Restart()
			all := heard(t, first.Log)
			if last := all[len(all)-1]; last.Event != "Synchronize" || len(last.Containers) != 1 || last.Containers[0].State != api.ContainerState_CONTAINER_RUNNING {
				t.Errorf("after the restart the plugin was told %+v", last)
			}
			n.StopContainer(container, 0)
			n.Eventually("the end is told", func() bool { return slices.Contains(events(heard(t, first.Log)), "StopContainer") })
			n.RemovePod(pod)
			want := []string{
				"RunPodSandbox", "CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer", "Synchronize",
				"StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox",
			}
			if got := events(heard(t, first.Log)); !slices.Equal(got, want) {
				t.Errorf("told %v, want %v", got, want)
			}
		})
	}
}

// A plugin that hangs, or dies, at any event holds a pod up for no longer than its time-out, is
// disconnected and said so; one that refuses is obeyed where an event can be refused.
func TestPluginsThatFail(t *testing.T) {
	n := node.Start(t, node.Options{Flags: []string{"--nri-request-timeout", "500ms"}})
	ref := warm(t, n)
	id := n.Pull(ref)
	leavesNothing(t, n)
	for _, event := range []string{
		"RunPodSandbox", "CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer",
		"StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox",
	} {
		for name, o := range map[string]orders{"10-hangs": {Hang: event}, "10-dies": {Die: event}} {
			t.Run(name+" at "+event, func(t *testing.T) {
				n := n.For(t)
				o.Name = name
				joinQuickly(t, n, o)
				began := time.Now()
				pod, _ := n.Launch(n.Sandbox("pod"), node.Container("main", id, "sleep", "100000"))
				n.RemovePod(pod)
				if took := time.Since(began); took > 30*time.Second {
					t.Errorf("the pod's life took %v", took)
				}
				n.Eventually("the plugin is gone", func() bool { return !connected(n, name) })
				if said := n.Gantry("plugins"); !strings.Contains(said, name+"  ") || !strings.Contains(said, "gone") {
					t.Errorf("gantry plugins: %s", said)
				}
			})
		}
	}
}

// A plugin's refusal is the client's error, names the plugin, and leaves nothing.
func TestPluginsThatRefuse(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	id := n.Pull(ref)
	leavesNothing(t, n)
	t.Run("a pod", func(t *testing.T) {
		n := n.For(t)
		join(t, n, orders{Name: "10-no", Deny: "RunPodSandbox"})
		_, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.Sandbox("no")})
		refusedBy(t, err, "10-no")
	})
	t.Run("a container", func(t *testing.T) {
		n := n.For(t)
		join(t, n, orders{Name: "10-no", Deny: "CreateContainer"})
		s := n.Sandbox("no")
		pod := n.RunPod(s)
		defer n.RemovePod(pod)
		_, err := n.Runtime.CreateContainer(n.Context(), &runtimeapi.CreateContainerRequest{
			PodSandboxId: pod, Config: node.Container("main", id, "true"), SandboxConfig: s,
		})
		refusedBy(t, err, "10-no")
	})
	t.Run("a start", func(t *testing.T) {
		n := n.For(t)
		join(t, n, orders{Name: "10-no", Deny: "StartContainer"})
		s := n.Sandbox("no")
		pod := n.RunPod(s)
		defer n.RemovePod(pod)
		c := n.Create(pod, node.Container("main", id, "true"), s)
		_, err := n.Runtime.StartContainer(n.Context(), &runtimeapi.StartContainerRequest{ContainerId: c})
		refusedBy(t, err, "10-no")
		if st := n.Container(c); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.Reason != "StartError" {
			t.Errorf("the container is %v, %s", st.State, st.Reason)
		}
	})
	t.Run("another plugin's adjustment", func(t *testing.T) {
		n := n.For(t)
		join(t, n, orders{Name: "10-sets", Adjust: &api.ContainerAdjustment{Env: []*api.KeyValue{{Key: "FORBIDDEN", Value: "1"}}}})
		join(t, n, orders{Name: "90-judges", Validates: true})
		s := n.Sandbox("no")
		pod := n.RunPod(s)
		defer n.RemovePod(pod)
		_, err := n.Runtime.CreateContainer(n.Context(), &runtimeapi.CreateContainerRequest{
			PodSandboxId: pod, Config: node.Container("main", id, "true"), SandboxConfig: s,
		})
		refusedBy(t, err, "90-judges")
	})
}

func refusedBy(t *testing.T, err error, plugin string) {
	t.Helper()
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), plugin) {
		t.Errorf("error %v, want a failed precondition that names %s", err, plugin)
	}
}
