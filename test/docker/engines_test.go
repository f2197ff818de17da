package docker_test

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/labdocker"
	"gantry/test/node"
)

// web serves one page on port 8080.
var web = []string{"sh", "-c", "mkdir /www && echo page >/www/index.html && echo up && exec httpd -f -p 8080 -h /www"}

func TestTwoEnginesInOneServer(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			n, d := both(t, v)
			image := n.Pull(node.Busybox(t))
			type pair struct{ pod, container string }
			pairs := map[string]pair{}
			for _, handler := range []string{"", "docker"} {
				name := "on-" + handler
				if handler == "" {
					name = "on-native"
				}
				pod, container := launch(n, name, handler, node.Container("main", image, web...))
				pairs[name] = pair{pod, container}
			}
			if out := d.Docker("ps", "--no-trunc", "-q"); !strings.Contains(out, pairs["on-docker"].container) || strings.Contains(out, pairs["on-native"].container) {
				t.Errorf("docker runs %s, want %s alone", out, pairs["on-docker"].container)
			}
			inLists(t, n, []string{pairs["on-native"].pod, pairs["on-docker"].pod}, []string{pairs["on-native"].container, pairs["on-docker"].container})
			for name, p := range pairs {
				t.Run(name, func(t *testing.T) {
					works(t, n.For(t), p.pod, p.container)
				})
			}
			// Each reaches the other, through the node's own network.
			for name, p := range pairs {
				for other, q := range pairs {
					if ip := n.Pod(q.pod).Network.Ip; name != other {
						if got := n.Exec(p.container, "wget", "-q", "-O-", "http://"+ip+":8080/"); got != "page\n" {
							t.Errorf("%s reads %q from %s", name, got, other)
						}
					}
				}
			}
			endings(t, n, pairs["on-native"].container, pairs["on-docker"].container)
			for _, p := range pairs {
				n.RemovePod(p.pod)
			}
			if out := d.Docker("ps", "-aq"); out != "" {
				t.Errorf("docker is left with %s", out)
			}
		})
	}
}

// inLists checks that lists have the pods and containers, and statistics their numbers.
func inLists(t *testing.T, n *node.Node, pods, containers []string) {
	t.Helper()
	sandboxes, err := n.Runtime.ListPodSandbox(n.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(sandboxes.Items) != len(pods) {
		t.Errorf("pods: %v, %v", sandboxes, err)
	}
	all, err := n.Runtime.ListContainers(n.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(all.Containers) != len(containers) {
		t.Errorf("containers: %v, %v", all, err)
	}
	images, err := n.Images.ListImages(n.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all.GetContainers() {
		s := n.Container(c.Id)
		if c.ImageRef != s.ImageRef || c.ImageId != s.ImageId || c.ImageId != c.ImageRef {
			t.Errorf("container %s: image %q, %q in the list, %q, %q in its status", c.Id, c.ImageRef, c.ImageId, s.ImageRef, s.ImageId)
		}
		if !slices.ContainsFunc(images.Images, func(i *runtimeapi.Image) bool { return i.Id == c.ImageRef }) {
			t.Errorf("container %s is of image %s, which no list has", c.Id, c.ImageRef)
		}
	}
	n.Eventually("statistics of both", func() bool {
		stats, err := n.Runtime.ListPodSandboxStats(n.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		told := 0
		for _, s := range stats.Stats {
			if s.Linux.GetMemory().GetWorkingSetBytes().GetValue() > 0 && len(s.Linux.GetContainers()) == 1 {
				told++
			}
		}
		return told == len(pods)
	})
}

// works checks exec, log and port-forward of a container of web.
func works(t *testing.T, n *node.Node, pod, container string) {
	if out := n.Exec(container, "echo", "here"); out != "here\n" {
		t.Errorf("exec: %q", out)
	}
	n.Eventually("first line", func() bool { return strings.HasSuffix(n.ReadLog(container), "stdout F up\n") })
	n.Eventually("the page is served", func() bool { // which comes after the line
		r, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{
			ContainerId: container, Cmd: []string{"wget", "-q", "-O-", "http://127.0.0.1:8080/"}, Timeout: 30,
		})
		return err == nil && r.ExitCode == 0
	})
	cmd := n.CrictlCommand(n.Context(), "port-forward", pod, "0:8080")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	port := forwarded(t, out)
	resp, err := http.Get("http://127.0.0.1:" + port + "/")
	if err != nil {
		t.Fatalf("forwarded port: %v", err)
	}
	defer resp.Body.Close()
	if page, err := io.ReadAll(resp.Body); err != nil || string(page) != "page\n" {
		t.Errorf("forwarded page: %q, %v", page, err)
	}
}

var forwarding = regexp.MustCompile(`Forwarding from 127\.0\.0\.1:(\d+)`)

func forwarded(t *testing.T, out io.Reader) string {
	t.Helper()
	var said []byte
	buf := make([]byte, 512)
	for {
		k, err := out.Read(buf)
		said = append(said, buf[:k]...)
		if m := forwarding.FindSubmatch(said); m != nil {
			return string(m[1])
		}
		if err != nil {
			t.Fatalf("port-forward says %q: %v", said, err)
		}
	}
}

// endings checks that the end of each container is an event of the one stream.
func endings(t *testing.T, n *node.Node, containers ...string) {
	t.Helper()
	events, err := n.Runtime.GetContainerEvents(n.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = events.Header(); err != nil { // it listens
		t.Fatal(err)
	}
	for _, id := range containers {
		n.StopContainer(id, time.Second)
	}
	missing := slices.Clone(containers)
	for len(missing) > 0 {
		e, err := events.Recv()
		if err != nil {
			t.Fatalf("no event of %v: %v", missing, err)
		}
		if e.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT {
			missing = slices.DeleteFunc(missing, func(id string) bool { return id == e.ContainerId })
		}
	}
}

// TestImagesMoveBetweenStores runs pods on the engine whose store lacks their image.
func TestImagesMoveBetweenStores(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			n, d := both(t, v)
			local := d.Busybox() // in Docker's store alone, as docker build leaves it
			pod, container := launch(n, "native-from-docker", "", node.Container("main", local, idle...))
			n.Eventually("first line", func() bool { return strings.HasSuffix(n.ReadLog(container), "stdout F up\n") })
			n.RemovePod(pod)
			pulled := n.Pull(node.Busybox(t)) // in the native store alone
			for i := range 2 {
				pod, container = launch(n, fmt.Sprint("docker-from-native-", i), "docker", node.Container("main", pulled, idle...))
				n.Eventually("first line", func() bool { return strings.HasSuffix(n.ReadLog(container), "stdout F up\n") })
				n.RemovePod(pod)
			}
			for _, ref := range []string{local, node.Busybox(t)} {
				if _, err := n.Images.RemoveImage(n.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
					t.Fatalf("remove %s: %v", ref, err)
				}
				r, err := n.Images.ImageStatus(n.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
				if err != nil || r.Image != nil {
					t.Errorf("%s is still there: %v, %v", ref, r.GetImage(), err)
				}
			}
		})
	}
}
