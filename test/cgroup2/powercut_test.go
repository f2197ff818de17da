package cgroup2_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/labimage"
	"gantry/test/node"
)

// Where the images of the power cut are, before it and after.
const (
	registry = "127.0.0.1:5000"
	whole    = registry + "/lab/whole:1"
	half     = registry + "/lab/half:1"
)

// images serves both images; fault answers for the second one's large layer.
func images(t *testing.T, fault labimage.Fault) {
	t.Helper()
	s, err := labimage.Serve(labimage.Config{Listen: registry})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	busybox, err := labimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(content) // does not compress
	large, err := labimage.Build(v1.Config{Cmd: []string{"none"}}, []labimage.Entry{labimage.File("large", 0o644, string(content))})
	if err != nil {
		t.Fatal(err)
	}
	for name, image := range map[string]v1.Image{"lab/whole:1": busybox, "lab/half:1": large} {
		if _, err = s.Push(name, image); err != nil {
			t.Fatal(err)
		}
	}
	layers, err := large.Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	if fault != nil {
		s.SetFault(labimage.On(http.MethodGet, digest.String(), fault))
	}
}

// TestPowerCut has a container running, an image just pulled and another one half there when the
// machine loses its power. It does not return.
func TestPowerCut(t *testing.T) {
	n := usual.serve(t)
	cut := labimage.Stall()
	images(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		time.AfterFunc(time.Second, func() { fmt.Println("\nvm: power cut") })
		return cut(w, r, next)
	})
	n.Pull(whole)
	sandbox := n.Sandbox("cut")
	sandbox.Linux.CgroupParent = ""
	n.Launch(sandbox, node.Container("main", whole, "sleep", "100000"))
	_, err := n.Images.PullImage(n.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: half}})
	t.Errorf("the machine still runs; the pull ended with %v", err)
}

// TestAfterThePowerCut finds the image that was pulled whole and the other one not at all, and both
// usable; and everything of the containers of before can be removed.
func TestAfterThePowerCut(t *testing.T) {
	n := usual.serve(t)
	list, err := n.Images.ListImages(n.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var tags []string
	for _, i := range list.Images {
		tags = append(tags, i.RepoTags...)
	}
	if !slices.Contains(tags, whole) || slices.Contains(tags, half) {
		t.Errorf("images %v: want %s and not %s", tags, whole, half)
	}
	t.Logf("gantry images verify:\n%s", run(t, node.Binary(t, "gantry"), "images", "verify"))
	containers, err := n.Runtime.ListContainers(n.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers.Containers {
		if c.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("container %s of before the cut is %v", c.Metadata.Name, c.State)
		}
	}
	pods, err := n.Runtime.ListPodSandbox(n.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		n.RemovePod(p.Id)
	}
	images(t, nil)
	n.Pull(half)
	sandbox := n.Sandbox("after")
	sandbox.Linux.CgroupParent = ""
	pod, container := n.Launch(sandbox, node.Container("main", whole, "sh", "-c", "echo fine; md5sum /bin/busybox"))
	if st := n.Ended(container); st.ExitCode != 0 {
		t.Errorf("exit code %d", st.ExitCode)
	}
	n.Eventually("the log has what it said", func() bool { return strings.Contains(n.ReadLog(container), "fine") })
	n.RemovePod(pod)
}
