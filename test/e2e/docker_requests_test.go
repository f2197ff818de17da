package e2e_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/labdocker"
	"gantry/test/node"
)

// recorded is a server whose every request to its Docker Engine is noted, and an image.
type recorded struct {
	*node.Node
	dockerd  *labdocker.Daemon
	requests *labdocker.Recorder
	image    string
	past     map[string]bool // ids of containers of before, whose ends may still be looked at
	looked   time.Time       // when it was last looked what was asked
}

// patience is how long a request may take until the engine is asked whether it is there at all.
const patience = 4 * time.Second

const ping = "HEAD /_ping"

func newRecorded(t testing.TB, o node.Options) *recorded {
	t.Helper()
	// As on any node with pods; else dockerd warns of it with every container, and what it keeps is looked at.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &recorded{past: map[string]bool{}, looked: time.Now(), dockerd: labdocker.Start(t, labdocker.Options{Version: labdocker.FromEnvironment(t)})}
	r.requests = r.dockerd.Record()
	o.Flags = append(o.Flags, "--engine", "docker", "--docker-endpoint", r.requests.Endpoint())
	r.Node = node.Start(t, o)
	r.image = r.Pull(node.Busybox(t))
	return r
}

// asked says that since it was last looked exactly this was asked of Docker, by method and path.
func (r *recorded) asked(t *testing.T, during string, want map[string]int) {
	t.Helper()
	if got := r.take(want[ping]); !maps.Equal(got, want) {
		t.Errorf("%s: docker was asked for %v; want %v", during, got, want)
	}
}

// take counts what was asked since it was last looked, but of containers of before. Where something took long there may
// have been more pings than that many.
func (r *recorded) take(pings int) map[string]int {
	got := labdocker.Count(slices.DeleteFunc(r.requests.Take(), func(q labdocker.Request) bool { return r.past[q.ID] }))
	if time.Since(r.looked) > patience && got[ping] > pings {
		if got[ping] = pings; pings == 0 {
			delete(got, ping)
		}
	}
	r.looked = time.Now()
	return got
}

// settles takes what was asked so far, until nothing comes any more: the end of a container is looked at beside
// the calls, and when they have long returned. What comes later still of the same containers does not count.
func (r *recorded) settles() {
	for last := time.Now(); time.Since(last) < time.Second; <-time.After(20 * time.Millisecond) {
		for _, q := range r.requests.Take() {
			last = time.Now()
			if strings.HasPrefix(q.Path, "/containers/ID") {
				r.past[q.ID] = true
			}
		}
	}
	r.looked = time.Now()
}

// TestRequestsOfAPod is what a pod costs dockerd. Each request takes milliseconds that the pod waits.
func TestRequestsOfAPod(t *testing.T) {
	r := newRecorded(t, node.Options{})
	pod, _ := r.Launch(r.Sandbox("first"), node.Container("main", r.image, "sleep", "100000")) // with the pause image
	r.RemovePod(pod)
	r.settles()

	s := r.Sandbox("second")
	pod = r.RunPod(s)
	r.asked(t, "RunPodSandbox", map[string]int{"POST /containers/create": 1, "POST /containers/ID/start": 1, "GET /containers/ID/json": 1})
	id := r.Create(pod, node.Container("main", r.image, "sleep", "100000"), s)
	r.asked(t, "CreateContainer", map[string]int{"POST /containers/create": 1})
	r.StartContainer(id)
	r.asked(t, "StartContainer", map[string]int{"POST /containers/ID/start": 1, "GET /containers/ID/json": 1})
	want := 1
	if r.dockerd.Version == labdocker.Debian { // which takes no annotations
		want = 2
	}
	// One that starts or removes another is one for a moment, too.
	r.Eventually(fmt.Sprintf("%d shims look after the pod", want), func() bool { return r.shims(t) == want })
	r.RemovePod(pod)
}

// shims counts containerd's helpers of the Docker Engine.
func (r *recorded) shims(t *testing.T) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		line, err := os.ReadFile(f)
		if words := strings.Split(string(line), "\x00"); err == nil && filepath.Base(words[0]) == "containerd-shim-runc-v2" &&
			strings.Contains(string(line), r.dockerd.Run) && strings.Contains(string(line), "\x00-id\x00") {
			n++
		}
	}
	return n
}

// quiet is for how long nothing may happen on a node where nobody does anything.
const quiet = 10 * time.Second

// TestIdleDockerIsLeftAlone is a node with pods where nothing happens.
func TestIdleDockerIsLeftAlone(t *testing.T) {
	r := newRecorded(t, node.Options{})
	for i := range 3 {
		r.Launch(r.Sandbox(fmt.Sprintf("idle-%d", i)), node.Container("main", r.image, "sleep", "100000"))
	}
	r.asksAsTheKubelet(t) // sizes are asked for when somebody first wants them
	r.Eventually("sizes of writable layers", func() bool {
		stats, err := r.Runtime.ListContainerStats(r.Context(), &runtimeapi.ListContainerStatsRequest{})
		return err == nil && len(stats.Stats) == 3 && !slices.ContainsFunc(stats.Stats, func(s *runtimeapi.ContainerStats) bool {
			return s.WritableLayer == nil
		})
	})
	r.requests.Take()
	<-time.After(quiet)
	if got := labdocker.Count(r.requests.Take()); len(got) > 0 {
		t.Errorf("for %s in which nobody did anything docker was asked for %v", quiet, got)
	}
	r.looked = time.Now()
	for range 5 {
		r.asksAsTheKubelet(t)
	}
	// Status says what is so now, and Docker's images are not known by heart. Sizes are measured again every two minutes.
	got := r.take(5)
	if got["GET /system/df"] == 1 {
		delete(got, "GET /system/df")
	}
	if want := map[string]int{ping: 5, "GET /images/json": 5}; !maps.Equal(got, want) {
		t.Errorf("lists, statuses and statistics, five times: docker was asked for %v; want %v", got, want)
	}
}

// asksAsTheKubelet makes the calls that a kubelet with nothing to do makes.
func (r *recorded) asksAsTheKubelet(t *testing.T) {
	t.Helper()
	ctx := r.Context()
	list, err := r.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.Containers) == 0 {
		t.Fatalf("list %v, %v", list, err)
	}
	id, pod := list.Containers[0].Id, list.Containers[0].PodSandboxId
	for what, call := range map[string]func() error{
		"ListPodSandbox": func() error {
			_, err := r.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return err
		},
		"Status": func() error {
			_, err := r.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
			return err
		},
		"Version": func() error {
			_, err := r.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
			return err
		},
		"ContainerStatus": func() error {
			_, err := r.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
			return err
		},
		"PodSandboxStatus": func() error {
			_, err := r.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
			return err
		},
		"ListContainerStats": func() error {
			_, err := r.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return err
		},
		"ListPodSandboxStats": func() error {
			_, err := r.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return err
		},
		"ImageFsInfo": func() error {
			_, err := r.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
			return err
		},
		"ListImages": func() error {
			_, err := r.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
			return err
		},
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
