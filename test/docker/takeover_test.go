package docker_test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/labdocker"
	"gantry/test/node"
)

// criDockerd is where an earlier runtime listens.
const criDockerd = "/run/cri-dockerd.sock"

// relics are containers as cri-dockerd leaves them, and one that has nothing to do with Kubernetes.
type relics struct {
	pause, running, exited string // of one pod
	orphan                 string // of a pod whose pause container is gone
	other                  string
}

func leaveRelics(d *labdocker.Daemon, logs string) relics {
	image := d.Busybox()
	run := func(name, kind, pod string, args ...string) string {
		all := []string{
			"run", "-d", "--name", name, "--label", "io.kubernetes.docker.type=" + kind, "--label", "io.kubernetes.pod.name=" + pod,
			"--label", "io.kubernetes.pod.namespace=lab", "--label", "io.kubernetes.pod.uid=uid-" + pod,
			"--label", "annotation.lab/note=kept", "--cgroup-parent", d.Cgroup + "/pod" + pod,
		}
		return strings.TrimSpace(d.Docker(append(all, args...)...))
	}
	part := func(pause, pod, name string, attempt int, command ...string) string {
		args := []string{
			"--label", "io.kubernetes.container.name=" + name, "--label", "io.kubernetes.sandbox.id=" + pause,
			"--label", "io.kubernetes.container.logpath=" + logs + "/" + name + ".log",
			"--network", "container:" + pause, "--ipc", "container:" + pause, image,
		}
		return run(fmt.Sprintf("k8s_%s_%s_lab_uid-%s_%d", name, pod, pod, attempt), "container", pod, append(args, command...)...)
	}
	pause := func(pod string) string {
		return run("k8s_POD_"+pod+"_lab_uid-"+pod+"_2", "podsandbox", pod, "--network", "none", "--ipc", "shareable", image, "sleep", "100000")
	}
	r := relics{pause: pause("web")}
	r.running = part(r.pause, "web", "main", 1, idle...)
	r.exited = part(r.pause, "web", "job", 0, "sh", "-c", "exit 3")
	d.Docker("wait", r.exited)
	gone := pause("lonely")
	r.orphan = part(gone, "lonely", "left", 0, idle...)
	d.Docker("rm", "-f", gone)
	r.other = strings.TrimSpace(d.Docker("run", "-d", "--network", "none", image, "sleep", "100000"))
	return r
}

func TestPodsOfAnEarlierRuntime(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			d := labdocker.Start(t, labdocker.Options{Version: v, LiveRestore: true})
			r := leaveRelics(d, t.TempDir())
			t.Run("are shown as foreign only", func(t *testing.T) {
				n := node.Start(t, node.Options{Flags: []string{"--docker-endpoint", d.Endpoint()}})
				foreignOnly(t, n, r)
			})
			n := node.Prepare(t, node.Options{Flags: []string{"--docker-endpoint", d.Endpoint(), "--take-over"}})
			t.Run("are not taken while that runtime answers", func(t *testing.T) {
				refusedBesideCRIDockerd(t, n.For(t))
			})
			n.Restart()
			takenOver(t, n, d, r)
		})
	}
}

func foreignOnly(t *testing.T, n *node.Node, r relics) {
	pods, containers := listAll(t, n)
	if len(pods)+len(containers) > 0 {
		t.Errorf("the CRI shows %v, %v", pods, containers)
	}
	ids := n.Gantry("ps", "--foreign", "-q")
	for _, id := range []string{r.pause, r.running, r.exited, r.orphan} {
		if !strings.Contains(ids, id) {
			t.Errorf("%s is not shown:\n%s", id, ids)
		}
	}
	if strings.Contains(ids, r.other) {
		t.Errorf("a container without Kubernetes' labels is shown:\n%s", ids)
	}
	table := n.Gantry("ps", "--foreign")
	for _, words := range [][]string{{"lab/web", "POD", "running"}, {"lab/web", "main", "running"}, {"lab/web", "job", "exited"}} {
		if !hasLine(table, words) {
			t.Errorf("no line has %v:\n%s", words, table)
		}
	}
}

func hasLine(text string, words []string) bool {
	for line := range strings.Lines(text) {
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			return true
		}
	}
	return false
}

func refusedBesideCRIDockerd(t *testing.T, n *node.Node) {
	ln, err := net.Listen("unix", criDockerd)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if n.Starts() {
		t.Fatal("the server has started beside cri-dockerd")
	}
	if log := n.LogTail(); !strings.Contains(log, "cri-dockerd answers at "+criDockerd) {
		t.Errorf("the log does not say why:\n%s", log)
	}
}

func listAll(t *testing.T, n *node.Node) (pods map[string]*runtimeapi.PodSandbox, containers map[string]*runtimeapi.Container) {
	t.Helper()
	pods, containers = map[string]*runtimeapi.PodSandbox{}, map[string]*runtimeapi.Container{}
	p, err := n.Runtime.ListPodSandbox(n.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, item := range p.Items {
		pods[item.Id] = item
	}
	c, err := n.Runtime.ListContainers(n.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, item := range c.Containers {
		containers[item.Id] = item
	}
	return pods, containers
}

// takenOver walks the way of a kubelet: it sees the old pod, makes another, and ends the old one.
func takenOver(t *testing.T, n *node.Node, d *labdocker.Daemon, r relics) {
	asLeft(t, n, d, r)
	n.Kill()
	n.Restart()
	asLeft(t, n, d, r)
	if out := n.Gantry("ps", "--foreign", "-q"); out != "" {
		t.Errorf("still foreign: %s", out)
	}
	if out := n.Exec(r.running, "echo", "here"); out != "here\n" {
		t.Errorf("exec: %q", out)
	}
	pod, container := launch(n, "web", "docker", node.Container("main", d.Busybox(), idle...))
	n.StopContainer(r.running, 0)
	if s := n.Ended(r.running); s.ExitCode != 137 {
		t.Errorf("the old container has ended with %d", s.ExitCode)
	}
	if _, err := n.Runtime.RemoveContainer(n.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: r.running}); err != nil {
		t.Errorf("remove the old container: %v", err)
	}
	pods, _ := listAll(t, n)
	for id := range pods {
		n.RemovePod(id)
	}
	if s, err := n.Runtime.ContainerStatus(n.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: container}); err == nil {
		t.Errorf("pod %s is removed, its container is %v", pod, s)
	}
	if out := strings.TrimSpace(d.Docker("ps", "-aq", "--no-trunc")); out != r.other {
		t.Errorf("docker is left with %s, want %s alone", out, r.other)
	}
}

// asLeft checks what the CRI says, and that nothing was stopped.
func asLeft(t *testing.T, n *node.Node, d *labdocker.Daemon, r relics) {
	t.Helper()
	pods, containers := listAll(t, n)
	if len(pods) != 2 || len(containers) != 3 {
		t.Fatalf("%d pods and %d containers: %v, %v", len(pods), len(containers), pods, containers)
	}
	p := pods[r.pause]
	if p.GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || p.Metadata.Name != "web" || p.Metadata.Uid != "uid-web" ||
		p.Metadata.Attempt != 2 || p.Annotations["lab/note"] != "kept" || p.Labels["io.kubernetes.pod.name"] != "web" {
		t.Errorf("the pod is %v", p)
	}
	if c := containers[r.running]; c.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || c.Metadata.Name != "main" ||
		c.Metadata.Attempt != 1 || c.PodSandboxId != r.pause {
		t.Errorf("the running container is %v", c)
	}
	if s := n.Container(r.exited); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 3 || s.FinishedAt < s.StartedAt || s.StartedAt == 0 ||
		time.Since(time.Unix(0, s.FinishedAt)) > time.Hour {
		t.Errorf("the container that had ended is %v", s)
	}
	if c := containers[r.orphan]; pods[c.GetPodSandboxId()].GetMetadata().GetName() != "lonely" {
		t.Errorf("the container without a pause container is %v", c)
	}
	ids := d.Docker("ps", "-q", "--no-trunc")
	for _, id := range []string{r.pause, r.running, r.orphan, r.other} {
		if !strings.Contains(ids, id) {
			t.Errorf("%s does not run any more", id)
		}
	}
}
