package cri_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/google/go-cmp/cmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/pod"
)

// node is a memory with two pods and three containers in different states.
func node() *memory {
	at := time.Unix(100, 0)
	sandbox := func(id, name string, state pod.SandboxState) *pod.Sandbox {
		return &pod.Sandbox{
			Spec: pod.SandboxSpec{
				Metadata: pod.Metadata{Name: name, UID: "u-" + name, Namespace: "default"}, Handler: "crun",
				Labels:     map[string]string{"app": name, "tier": "front"},
				Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceContainer, IPC: pod.NamespaceNode},
			},
			ID: id, Engine: "native", State: state, CreatedAt: at, NetNS: "/var/run/netns/" + id,
			Network: &pod.Network{IPs: []string{"10.1.0.2", "fd00::2"}, Result: []byte(`{"cniVersion":"1.0.0"}`)},
		}
	}
	container := func(id, podID string, state pod.ContainerState) *pod.Container {
		return &pod.Container{
			Spec: pod.ContainerSpec{
				Name: "c-" + id, ImageID: "sha256:abc", ImageName: "example.org/app:1", Labels: map[string]string{"id": id},
				LogPath: "/var/log/" + id, Resources: pod.Resources{CPUShares: 512},
			},
			ID: id, SandboxID: podID, ImageRef: "sha256:abc", State: state, CreatedAt: at, StartedAt: at.Add(time.Second),
		}
	}
	m := &memory{
		pods: []*pod.Sandbox{sandbox("aa11", "web", pod.SandboxReady), sandbox("bb22", "db", pod.SandboxNotReady)},
		containers: []*pod.Container{
			container("c1", "aa11", pod.ContainerRunning), container("c2", "aa11", pod.ContainerExited), container("d1", "bb22", pod.ContainerCreated),
		},
		images: []*pod.Image{{ID: "sha256:abc", Tags: []string{"example.org/app:1"}, Size: 42, User: "1000:1000"}},
		stats:  map[string]*pod.Metrics{"c1": containerUsage(at), "aa11": podUsage(at)},
	}
	exited := m.containers[1]
	exited.FinishedAt, exited.ExitCode, exited.Reason, exited.Message = at.Add(time.Minute), 137, pod.ReasonOOMKilled, "killed"
	exited.User = &pod.User{UID: 1000, GID: 1000, Groups: []int64{5}}
	exited.StopSignal = "SIGQUIT"
	return m
}

func TestListPodSandboxFilters(t *testing.T) {
	type filter = runtime.PodSandboxFilter
	for _, c := range []struct {
		rule   string
		filter *filter
		want   []string
	}{
		{"no filter lets all through", nil, []string{"aa11", "bb22"}},
		{"by id", &filter{Id: "aa11"}, []string{"aa11"}},
		{"by the beginning of an id", &filter{Id: "b"}, []string{"bb22"}},
		{"by ready", &filter{State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY}}, []string{"aa11"}},
		{"by not ready", &filter{State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_NOTREADY}}, []string{"bb22"}},
		{"by label", &filter{LabelSelector: map[string]string{"app": "db"}}, []string{"bb22"}},
		{"every label must match", &filter{LabelSelector: map[string]string{"app": "db", "tier": "back"}}, nil},
		{"a label that is absent is not empty", &filter{LabelSelector: map[string]string{"none": ""}}, nil},
		{"everything together", &filter{Id: "a", LabelSelector: map[string]string{"app": "db"}}, nil},
	} {
		t.Run(c.rule, func(t *testing.T) {
			res, err := service(node()).ListPodSandbox(t.Context(), &runtime.ListPodSandboxRequest{Filter: c.filter})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range res.GetItems() {
				got = append(got, p.GetId())
			}
			wantSame(t, got, c.want)
		})
	}
}

func TestListContainersFilters(t *testing.T) {
	type filter = runtime.ContainerFilter
	for _, c := range []struct {
		rule   string
		filter *filter
		want   []string
	}{
		{"no filter lets all through", nil, []string{"c1", "c2", "d1"}},
		{"by the beginning of an id", &filter{Id: "c"}, []string{"c1", "c2"}},
		{"by sandbox", &filter{PodSandboxId: "bb22"}, []string{"d1"}},
		{"by created", &filter{State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_CREATED}}, []string{"d1"}},
		{"by exited", &filter{State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_EXITED}}, []string{"c2"}},
		{"by label", &filter{LabelSelector: map[string]string{"id": "c1"}}, []string{"c1"}},
		{"everything together", &filter{PodSandboxId: "aa", LabelSelector: map[string]string{"id": "d1"}}, nil},
	} {
		t.Run(c.rule, func(t *testing.T) {
			res, err := service(node()).ListContainers(t.Context(), &runtime.ListContainersRequest{Filter: c.filter})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range res.GetContainers() {
				got = append(got, p.GetId())
			}
			wantSame(t, got, c.want)
		})
	}
}

func TestPodSandboxStatus(t *testing.T) {
	res, err := service(node()).PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: "aa", Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	want := &runtime.PodSandboxStatus{
		Id: "aa11", Metadata: &runtime.PodSandboxMetadata{Name: "web", Uid: "u-web", Namespace: "default"},
		State: runtime.PodSandboxState_SANDBOX_READY, CreatedAt: 100e9,
		Network: &runtime.PodSandboxNetworkStatus{Ip: "10.1.0.2", AdditionalIps: []*runtime.PodIP{{Ip: "fd00::2"}}},
		Linux: &runtime.LinuxPodSandboxStatus{Namespaces: &runtime.Namespace{Options: &runtime.NamespaceOption{
			Pid: runtime.NamespaceMode_CONTAINER, Ipc: runtime.NamespaceMode_NODE,
		}}},
		Labels: map[string]string{"app": "web", "tier": "front"}, RuntimeHandler: "crun",
	}
	if d := cmp.Diff(want, res.GetStatus(), protocmp.Transform()); d != "" {
		t.Error(d)
	}
	if n := len(res.GetContainersStatuses()); n != 2 {
		t.Errorf("%d statuses of containers, want those of c1 and c2", n)
	}
	var info struct {
		NetNS  string          `json:"netns"`
		Result json.RawMessage `json:"cniResult"`
		Config pod.SandboxSpec `json:"config"`
	}
	if err := json.Unmarshal([]byte(res.GetInfo()["info"]), &info); err != nil {
		t.Fatal(err)
	}
	if info.NetNS != "/var/run/netns/aa11" || string(info.Result) != `{"cniVersion":"1.0.0"}` || info.Config.Handler != "crun" {
		t.Errorf("%s", res.GetInfo()["info"])
	}
}

func TestContainerStatus(t *testing.T) {
	res, err := service(node()).ContainerStatus(t.Context(), &runtime.ContainerStatusRequest{ContainerId: "c2"})
	if err != nil {
		t.Fatal(err)
	}
	want := &runtime.ContainerStatus{
		Id: "c2", Metadata: &runtime.ContainerMetadata{Name: "c-c2"}, State: runtime.ContainerState_CONTAINER_EXITED,
		CreatedAt: 100e9, StartedAt: 101e9, FinishedAt: 160e9, ExitCode: 137, Reason: "OOMKilled", Message: "killed",
		Image:    &runtime.ImageSpec{Image: "example.org/app:1", UserSpecifiedImage: "example.org/app:1"},
		ImageRef: "sha256:abc", ImageId: "sha256:abc",
		Labels: map[string]string{"id": "c2"}, LogPath: "/var/log/c2",
		Resources:  &runtime.ContainerResources{Linux: &runtime.LinuxContainerResources{CpuShares: 512}},
		User:       &runtime.ContainerUser{Linux: &runtime.LinuxContainerUser{Uid: 1000, Gid: 1000, SupplementalGroups: []int64{5}}},
		StopSignal: runtime.Signal_SIGNAL_SIGQUIT,
	}
	if d := cmp.Diff(want, res.GetStatus(), protocmp.Transform()); d != "" {
		t.Error(d)
	}
	if len(res.GetInfo()) > 0 {
		t.Error("info without verbose")
	}
}

// A mount comes back as it was given; an image volume names its image in image_ref too.
func TestMountsComeBack(t *testing.T) {
	m := &memory{}
	s := service(m)
	created, err := s.CreateContainer(t.Context(), fullCreateContainer())
	if err != nil {
		t.Fatal(err)
	}
	res, err := s.ContainerStatus(t.Context(), &runtime.ContainerStatusRequest{ContainerId: created.GetContainerId(), Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	want := fullMounts()
	want[1].Readonly, want[1].Image.ImageRef = true, want[1].Image.Image
	if d := cmp.Diff(want, res.GetStatus().GetMounts(), protocmp.Transform()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(fullResources(), res.GetStatus().GetResources().GetLinux(), protocmp.Transform()); d != "" {
		t.Error(d)
	}
}

func TestWhatIsGone(t *testing.T) {
	conn, _ := serve(t, &memory{}, cri.Interceptors{})
	for method, req := range map[string]proto.Message{
		"RuntimeService/StopPodSandbox":   &runtime.StopPodSandboxRequest{PodSandboxId: "x"},
		"RuntimeService/RemovePodSandbox": &runtime.RemovePodSandboxRequest{PodSandboxId: "x"},
		"RuntimeService/StopContainer":    &runtime.StopContainerRequest{ContainerId: "x"},
		"RuntimeService/RemoveContainer":  &runtime.RemoveContainerRequest{ContainerId: "x"},
		"ImageService/RemoveImage":        &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: "x"}},
		"ImageService/ImageStatus":        &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: "x"}},
	} {
		if err := conn.Invoke(t.Context(), "/runtime.v1."+method, req, &runtime.VersionResponse{}); err != nil {
			t.Errorf("%s of what is not there: %v", method, err)
		}
	}
	_, err := service(&memory{}).ContainerStatus(t.Context(), &runtime.ContainerStatusRequest{ContainerId: "x"})
	if !errdefs.IsNotFound(err) {
		t.Errorf("ContainerStatus of what is not there: %v", err)
	}
}

func TestStopContainerGrace(t *testing.T) {
	for given, want := range map[int64]time.Duration{0: 0, 30: 30 * time.Second, 1 << 62: 1<<63 - 1} {
		m := node()
		if _, err := service(m).StopContainer(t.Context(), &runtime.StopContainerRequest{ContainerId: "c1", Timeout: given}); err != nil {
			t.Fatal(err)
		}
		if m.grace != want {
			t.Errorf("%d s became %v", given, m.grace)
		}
	}
}

func TestStatus(t *testing.T) {
	m := &memory{status: pod.NodeStatus{
		Network:  errors.New("no configuration in /etc/cni/net.d"),
		Handlers: []string{"", "crun", "runc"},
		Features: map[string]pod.HandlerFeatures{"crun": {RecursiveReadOnlyMounts: true, UserNamespaces: true}},
		Verbose:  map[string]string{"config": `{"root":"/var/lib/gantry"}`, "note": "plain"},
	}}
	res, err := service(m).Status(t.Context(), &runtime.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	conditions := []*runtime.RuntimeCondition{
		{Type: "RuntimeReady", Status: true},
		{Type: "NetworkReady", Reason: "NetworkNotReady", Message: "no configuration in /etc/cni/net.d"},
	}
	if d := cmp.Diff(conditions, res.GetStatus().GetConditions(), protocmp.Transform()); d != "" {
		t.Error(d)
	}
	handlers := []*runtime.RuntimeHandler{
		{Features: &runtime.RuntimeHandlerFeatures{}},
		{Name: "crun", Features: &runtime.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true, UserNamespaces: true}},
		{Name: "runc", Features: &runtime.RuntimeHandlerFeatures{}},
	}
	if d := cmp.Diff(handlers, res.GetRuntimeHandlers(), protocmp.Transform()); d != "" {
		t.Error(d)
	}
	wantSame(t, res.GetInfo(), map[string]string{"config": `{"root":"/var/lib/gantry"}`, "note": `"plain"`})
}

// A file that a reload could not use shows as a condition; the kubelet looks at the first two only.
func TestStatusTellsOfABrokenConfiguration(t *testing.T) {
	m := &memory{status: pod.NodeStatus{Configuration: errors.New("config.toml:3: unknown key")}}
	res, err := service(m).Status(t.Context(), &runtime.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := []*runtime.RuntimeCondition{
		{Type: "RuntimeReady", Status: true},
		{Type: "NetworkReady", Status: true},
		{Type: "GantryConfigurationCurrent", Reason: "ReloadFailed", Message: "config.toml:3: unknown key"},
	}
	if d := cmp.Diff(want, res.GetStatus().GetConditions(), protocmp.Transform()); d != "" {
		t.Error(d)
	}
}

func TestRuntimeConfig(t *testing.T) {
	for systemd, want := range map[bool]runtime.CgroupDriver{false: runtime.CgroupDriver_CGROUPFS, true: runtime.CgroupDriver_SYSTEMD} {
		res, err := service(&memory{status: pod.NodeStatus{SystemdCgroup: systemd}}).RuntimeConfig(t.Context(), &runtime.RuntimeConfigRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if got := res.GetLinux().GetCgroupDriver(); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

// The Stream* lists say what the lists say, each item once and in order, in messages that fit.
func TestStreamedLists(t *testing.T) {
	m := &memory{}
	long := strings.Repeat("x", 300<<10)
	for i := range 20 {
		m.containers = append(m.containers, &pod.Container{ID: fmt.Sprint(i), Spec: pod.ContainerSpec{Annotations: map[string]string{"a": long}}})
	}
	conn, _ := serve(t, m, cri.Interceptors{})
	stream, err := runtime.NewRuntimeServiceClient(conn).StreamContainers(t.Context(), &runtime.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	messages := 0
	for {
		res, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if n := proto.Size(res); n > 2<<20 || len(res.GetContainers()) == 0 {
			t.Errorf("a message of %d bytes with %d containers", n, len(res.GetContainers()))
		}
		for _, c := range res.GetContainers() {
			ids = append(ids, c.GetId())
		}
		messages++
	}
	if messages < 3 || len(ids) != 20 || !slices.IsSortedFunc(ids, func(a, b string) int { return len(a) - len(b) }) {
		t.Errorf("%d messages with %v", messages, ids)
	}
}
