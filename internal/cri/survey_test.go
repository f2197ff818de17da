package cri_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/event"
	"gantry/internal/pod"
)

// request is an RPC with a request that sets what can be set together.
type request struct {
	method  string
	base    proto.Message
	ignored map[string]string // fields that change nothing, and why; one that ends in .* is a prefix
}

// reason is why a field changes nothing, or "".
func (r request) reason(field string) string {
	for name, why := range r.ignored {
		if prefix, ok := strings.CutSuffix(name, "*"); name == field || ok && strings.HasPrefix(field, prefix) {
			return why
		}
	}
	return ""
}

// surveyed are the RPCs whose requests have fields, with nothing left out but those that are not built.
func surveyed() []request {
	podFilter := &runtime.PodSandboxFilter{
		Id: "aa11", State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY}, LabelSelector: map[string]string{"app": "web"},
	}
	containerFilter := &runtime.ContainerFilter{
		Id: "c1", PodSandboxId: "aa11", State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING},
		LabelSelector: map[string]string{"id": "c1"},
	}
	podStats := &runtime.PodSandboxStatsFilter{Id: "aa11", LabelSelector: map[string]string{"app": "web"}}
	containerStats := &runtime.ContainerStatsFilter{Id: "c1", PodSandboxId: "aa11", LabelSelector: map[string]string{"id": "c1"}}
	one := &runtime.ImageSpec{Image: "sha256:abc", Annotations: map[string]string{"a": "b"}}
	images := map[string]string{
		"filter.image.user_specified_image": "for CreateContainer",
		"filter.image.runtime_handler":      "images are listed of all engines together",
		"filter.image.annotations":          "they choose an image when it is pulled",
		"filter.image.image_ref":            "for image volumes",
	}
	named := map[string]string{
		"image.user_specified_image": "for CreateContainer",
		"image.runtime_handler":      "the image is named by image",
		"image.annotations":          "they choose an image when it is pulled",
		"image.image_ref":            "for image volumes",
	}
	return []request{
		{"Version", &runtime.VersionRequest{}, map[string]string{"version": "the answer is the same for every client"}},
		{"RunPodSandbox", fullRunPodSandbox(), map[string]string{
			"config.linux.security_context.seccomp_profile_path": "seccomp, its successor, is set",
		}},
		{"StopPodSandbox", &runtime.StopPodSandboxRequest{PodSandboxId: "aa11"}, nil},
		{"RemovePodSandbox", &runtime.RemovePodSandboxRequest{PodSandboxId: "aa11"}, nil},
		{"PodSandboxStatus", &runtime.PodSandboxStatusRequest{PodSandboxId: "aa11"}, nil},
		{"ListPodSandbox", &runtime.ListPodSandboxRequest{Filter: podFilter}, nil},
		{"StreamPodSandboxes", &runtime.StreamPodSandboxesRequest{Filter: podFilter}, nil},
		{"CreateContainer", fullCreateContainer(), ignoredByCreateContainer()},
		{"StartContainer", &runtime.StartContainerRequest{ContainerId: "d1"}, nil},
		{"StopContainer", &runtime.StopContainerRequest{ContainerId: "c1", Timeout: 1}, nil},
		{"RemoveContainer", &runtime.RemoveContainerRequest{ContainerId: "c1"}, nil},
		{"ListContainers", &runtime.ListContainersRequest{Filter: containerFilter}, nil},
		{"StreamContainers", &runtime.StreamContainersRequest{Filter: containerFilter}, nil},
		{"ContainerStatus", &runtime.ContainerStatusRequest{ContainerId: "c1"}, nil},
		{"UpdateContainerResources", &runtime.UpdateContainerResourcesRequest{ContainerId: "c1", Linux: fullResources()}, nil},
		{"ReopenContainerLog", &runtime.ReopenContainerLogRequest{ContainerId: "c1"}, nil},
		{"ExecSync", &runtime.ExecSyncRequest{ContainerId: "c1", Cmd: []string{"true"}, Timeout: 1}, nil},
		{"Exec", &runtime.ExecRequest{ContainerId: "c1", Cmd: []string{"true"}, Stdout: true, Stdin: true}, nil},
		{"Attach", &runtime.AttachRequest{ContainerId: "c1", Stdout: true, Stdin: true}, nil},
		{"PortForward", &runtime.PortForwardRequest{PodSandboxId: "aa11", Port: []int32{80}}, nil},
		{"ContainerStats", &runtime.ContainerStatsRequest{ContainerId: "c1"}, nil},
		{"ListContainerStats", &runtime.ListContainerStatsRequest{Filter: containerStats}, nil},
		{"StreamContainerStats", &runtime.StreamContainerStatsRequest{Filter: containerStats}, nil},
		{"PodSandboxStats", &runtime.PodSandboxStatsRequest{PodSandboxId: "aa11"}, nil},
		{"ListPodSandboxStats", &runtime.ListPodSandboxStatsRequest{Filter: podStats}, nil},
		{"StreamPodSandboxStats", &runtime.StreamPodSandboxStatsRequest{Filter: podStats}, nil},
		{"UpdateRuntimeConfig", &runtime.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtime.RuntimeConfig{NetworkConfig: &runtime.NetworkConfig{PodCidr: "10.0.0.0/16"}},
		}, map[string]string{"runtime_config.network_config.pod_cidr": "the network's own configuration holds it"}},
		{"Status", &runtime.StatusRequest{}, nil},
		{"CheckpointContainer", &runtime.CheckpointContainerRequest{ContainerId: "c1", Location: "/var/c1.tar", Timeout: 1}, nil},
		{"CheckpointPod", &runtime.CheckpointPodRequest{PodSandboxId: "aa11", OutputPath: "/var/aa11", ContainerIds: []string{"c1"}}, nil},
		{"RestorePod", &runtime.RestorePodRequest{
			CheckpointPath: "/var/aa11", Config: fullRunPodSandbox().GetConfig(), RuntimeHandler: "runc",
			ContainerConfigs: []*runtime.ContainerConfig{fullCreateContainer().GetConfig()},
		}, ignoredByRestorePod()},
		{"UpdatePodSandboxResources", &runtime.UpdatePodSandboxResourcesRequest{
			PodSandboxId: "aa11", Overhead: fullResources(), Resources: fullResources(),
		}, nil},
		{"ListImages", &runtime.ListImagesRequest{Filter: &runtime.ImageFilter{Image: one}}, images},
		{"StreamImages", &runtime.StreamImagesRequest{Filter: &runtime.ImageFilter{Image: one}}, images},
		{"ImageStatus", &runtime.ImageStatusRequest{Image: one}, named},
		{"PullImage", fullPullImage(), map[string]string{
			"image.user_specified_image": "for CreateContainer",
			"image.image_ref":            "for image volumes",
			"sandbox_config.*":           "only its metadata.uid is read: it tells where the sandbox is",
		}},
		{"RemoveImage", &runtime.RemoveImageRequest{Image: one}, named},
	}
}

func ignoredByCreateContainer() map[string]string {
	return map[string]string{
		"config.image.annotations":     "they choose an image when it is pulled",
		"config.image.runtime_handler": "the sandbox's handler runs the container",
		"config.image.image_ref":       "for image volumes; a container's image is named by image",

		"config.mounts.image.annotations":          "they choose an image when it is pulled",
		"config.mounts.image.runtime_handler":      "the sandbox's handler mounts the image",
		"config.mounts.image.image_ref":            "the image's id is in image",
		"config.mounts.image.user_specified_image": "the image's id is in image",

		"config.linux.security_context.seccomp_profile_path": "seccomp, its successor, is set",
		"config.linux.security_context.apparmor_profile":     "apparmor, its successor, is set",

		"sandbox_config.*": "the sandbox keeps what RunPodSandbox said",
	}
}

func ignoredByRestorePod() map[string]string {
	ignored := map[string]string{"config.linux.security_context.seccomp_profile_path": "seccomp, its successor, is set"}
	for field, why := range ignoredByCreateContainer() {
		if name, ok := strings.CutPrefix(field, "config."); ok {
			ignored["container_configs."+name] = why
		}
	}
	return ignored
}

func fullPullImage() *runtime.PullImageRequest {
	return &runtime.PullImageRequest{
		Image: &runtime.ImageSpec{Image: "example.org/app:1", Annotations: map[string]string{"a": "b"}},
		Auth: &runtime.AuthConfig{
			Username: "u", Password: "p", Auth: "a", ServerAddress: "s", IdentityToken: "i", RegistryToken: "r",
		},
		SandboxConfig: sandboxConfig(),
	}
}

// call returns what the backend got and what was answered. A deadline is told by the time that is left, so no time
// passes meanwhile.
func (r request) call(t *testing.T, req proto.Message) (got string, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { got, err = r.callNow(t, req) })
	return got, err
}

func (r request) callNow(t *testing.T, req proto.Message) (string, error) {
	t.Helper()
	m := node()
	m.status = pod.NodeStatus{Verbose: map[string]string{"a": "b"}}
	answers, err := ask(t, m, r.method, req)
	if err != nil {
		return "", err
	}
	slices.Sort(m.asked)
	all := []any{
		m.pods, m.containers, m.asked, m.grace, m.updated, m.update, m.overhead, m.pulledBy, m.exec, m.timeout, m.reopened, m.urls, m.written,
	}
	if p := m.pulled; p != nil {
		all = append(all, p.Ref, p.Auth, p.Annotations)
	}
	for _, a := range answers {
		all = append(all, a)
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), nil
}

// ask calls a method as gRPC does, without a connection.
func ask(t *testing.T, m *memory, method string, req proto.Message) ([]proto.Message, error) {
	t.Helper()
	decode := func(v any) error {
		proto.Merge(v.(proto.Message), req)
		return nil
	}
	for _, d := range []grpc.ServiceDesc{runtime.RuntimeService_ServiceDesc, runtime.ImageService_ServiceDesc} {
		for _, one := range d.Methods {
			if one.MethodName == method {
				res, err := one.Handler(service(m), t.Context(), decode, nil)
				if err != nil {
					return nil, err
				}
				return []proto.Message{res.(proto.Message)}, nil
			}
		}
		for _, one := range d.Streams {
			if one.StreamName == method {
				s := &sent{ctx: t.Context(), decode: decode}
				if method == "GetContainerEvents" {
					s.ctx = metadata.NewIncomingContext(s.ctx, metadata.Pairs(cri.ReplaySinceKey, time.Unix(0, 1).Format(time.RFC3339Nano)))
				}
				err := one.Handler(service(m), s)
				return s.messages, err
			}
		}
	}
	t.Fatalf("no method %s", method)
	return nil, nil
}

// sent is a stream that keeps what is sent.
type sent struct {
	grpc.ServerStream
	ctx      context.Context //nolint:containedctx // a stream has one
	decode   func(any) error
	messages []proto.Message
}

func (s *sent) Context() context.Context     { return s.ctx }
func (s *sent) RecvMsg(v any) error          { return s.decode(v) }
func (s *sent) SendHeader(metadata.MD) error { return nil }
func (s *sent) SetHeader(metadata.MD) error  { return nil }
func (s *sent) SendMsg(v any) error {
	s.messages = append(s.messages, proto.Clone(v.(proto.Message)))
	return nil
}

// methods are all of the CRI's, in the order of its file.
func methods(t *testing.T) []protoreflect.MethodDescriptor {
	t.Helper()
	var all []protoreflect.MethodDescriptor
	for _, name := range []protoreflect.FullName{"runtime.v1.RuntimeService", "runtime.v1.ImageService"} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
		if err != nil {
			t.Fatal(err)
		}
		list := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range list.Len() {
			all = append(all, list.Get(i))
		}
	}
	return all
}

// richNode is a node whose pods and containers have everything that can be told of them.
func richNode(t *testing.T) *memory {
	t.Helper()
	m := node()
	for method, req := range map[string]proto.Message{"RunPodSandbox": fullRunPodSandbox(), "CreateContainer": fullCreateContainer()} {
		if _, err := ask(t, m, method, req); err != nil {
			t.Fatal(err)
		}
	}
	full := m.containers[len(m.containers)-1].Spec
	full.Mounts[0].RecursiveReadOnly, full.Mounts[0].SELinuxRelabel, full.Mounts[0].Propagation = true, true, pod.PropagationBidirectional
	m.containers[0].Spec, m.containers[1].Spec = full, full
	m.pods[0].Spec = m.pods[len(m.pods)-1].Spec
	m.pods[1].Spec.Namespaces = pod.Namespaces{Network: pod.NamespaceNode, IPC: pod.NamespaceNode, PID: pod.NamespaceNode}
	moment := pod.StallTime{Total: time.Second, Avg10: 1, Avg60: 1, Avg300: 1}
	stall := &pod.Stall{Some: moment, Full: moment}
	usage, network := m.stats["c1"], m.stats["aa11"].Network
	usage.CPUStall, usage.MemoryStall, usage.IOStall = stall, stall, stall
	both := *usage
	for i := range network.Interfaces {
		network.Interfaces[i] = pod.InterfaceUsage{Name: network.Interfaces[i].Name, RxBytes: 1, RxErrors: 1, TxBytes: 1, TxErrors: 1}
	}
	both.Network = network
	m.stats["aa11"] = &both
	m.result = pod.ExecResult{Stdout: []byte("out"), Stderr: []byte("err"), ExitCode: 1}
	m.images[0].Digests = []string{"example.org/app@sha256:def"}
	m.images[0].Pinned = true
	m.images = append(m.images, &pod.Image{ID: "sha256:def", Tags: []string{"example.org/app:2"}, User: "www"})
	m.status = pod.NodeStatus{
		Network:       errors.New("no configuration"),
		SystemdCgroup: false, Handlers: []string{"crun"}, Verbose: map[string]string{"a": "b"},
		Features: map[string]pod.HandlerFeatures{"crun": {RecursiveReadOnlyMounts: true, UserNamespaces: true}},
	}
	m.events = event.New(event.Options{})
	m.tell(event.Started, "c1")
	m.pods[0], m.pods[1] = m.pods[1], m.pods[0]
	m.tell(event.Stopped, "d1")
	m.pods[0], m.pods[1] = m.pods[1], m.pods[0]
	m.events.Close()
	return m
}
