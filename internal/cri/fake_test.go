package cri_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/engine"
	"gantry/internal/event"
	"gantry/internal/pod"
)

// memory is every backend at once: it keeps what it was asked for and answers from it.
type memory struct {
	mu         sync.Mutex
	fail       error // what every changing call answers, when set
	pods       []*pod.Sandbox
	containers []*pod.Container
	images     []*pod.Image
	stats      map[string]*pod.Metrics
	events     *event.Log // nil: one that is closed
	status     pod.NodeStatus

	asked    []string      // what Pod, Container and Image were asked for
	grace    time.Duration // of the last StopContainer
	updated  string        // the container of the last UpdateContainer
	update   *pod.Resources
	overhead *pod.Resources
	pulled   *pod.Pull
	pulledBy string
	exec     []string
	timeout  time.Duration
	result   pod.ExecResult
	reopened string
	urls     []any
	written  []string // checkpoints: what of, and where
}

func (m *memory) CheckpointContainer(ctx context.Context, id, location string) error {
	_, err := m.Container(ctx, id)
	m.written = append(m.written, location)
	if at, ok := ctx.Deadline(); ok {
		m.timeout = time.Until(at)
	}
	return first(m.fail, err)
}

func (m *memory) CheckpointPod(ctx context.Context, podID, dir string, ids []string) error {
	_, err := m.Pod(ctx, podID)
	m.written = append(append(m.written, dir), ids...)
	return first(m.fail, err)
}

func (m *memory) RestorePod(ctx context.Context, dir string, spec *pod.SandboxSpec, all []*pod.ContainerSpec) (*pod.RestoredPod, error) {
	m.written = append(m.written, dir)
	id, err := m.RunPod(ctx, spec)
	if err != nil {
		return nil, err
	}
	made := &pod.RestoredPod{ID: id, Containers: map[string]string{}}
	for _, c := range all {
		if made.Containers[c.Name], err = m.CreateContainer(ctx, id, c); err != nil {
			return nil, err
		}
	}
	return made, nil
}

func (m *memory) RunPod(_ context.Context, spec *pod.SandboxSpec) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return "", m.fail
	}
	id := fmt.Sprintf("pod%d", len(m.pods))
	m.pods = append(m.pods, &pod.Sandbox{Spec: *spec, ID: id, State: pod.SandboxReady, CreatedAt: time.Unix(1, 0)})
	return id, nil
}

func (m *memory) StopPod(ctx context.Context, id string) error {
	_, err := m.Pod(ctx, id)
	return first(m.fail, err)
}

func (m *memory) RemovePod(ctx context.Context, id string) error { return m.StopPod(ctx, id) }

func (m *memory) Pod(_ context.Context, id string) (*pod.Sandbox, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, id)
	for _, p := range m.pods {
		if strings.HasPrefix(p.ID, id) {
			return p, nil
		}
	}
	return nil, fmt.Errorf("sandbox %s: %w", id, errdefs.ErrNotFound)
}

func (m *memory) Pods(context.Context) []*pod.Sandbox { return m.pods }

func (m *memory) CreateContainer(_ context.Context, podID string, spec *pod.ContainerSpec) (string, error) {
	if m.fail != nil {
		return "", m.fail
	}
	id := fmt.Sprintf("container%d", len(m.containers))
	m.containers = append(m.containers, &pod.Container{
		Spec: *spec, ID: id, SandboxID: podID, ImageRef: spec.ImageID, State: pod.ContainerCreated, CreatedAt: time.Unix(2, 0),
	})
	return id, nil
}

func (m *memory) StartContainer(ctx context.Context, id string) error {
	_, err := m.Container(ctx, id)
	return first(m.fail, err)
}

func (m *memory) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	m.grace = grace
	return m.StartContainer(ctx, id)
}

func (m *memory) RemoveContainer(ctx context.Context, id string) error {
	return m.StartContainer(ctx, id)
}

func (m *memory) UpdateContainer(ctx context.Context, id string, r *pod.Resources) error {
	m.updated, m.update = id, r
	return m.StartContainer(ctx, id)
}

func (m *memory) Container(_ context.Context, id string) (*pod.Container, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, id)
	for _, c := range m.containers {
		if strings.HasPrefix(c.ID, id) {
			return c, nil
		}
	}
	return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
}

func (m *memory) Containers(context.Context) []*pod.Container { return m.containers }

func (m *memory) UpdatePod(ctx context.Context, id string, overhead, r *pod.Resources) error {
	m.updated, m.overhead, m.update = id, overhead, r
	return m.StopPod(ctx, id)
}

func (m *memory) ContainerStats(ctx context.Context, id string) (*pod.Stats, error) {
	s, err := m.ContainerMetrics(ctx, id)
	if err != nil {
		return nil, err
	}
	return &s.Stats, nil
}

func (m *memory) PodStats(ctx context.Context, id string) (*pod.Stats, error) {
	return m.ContainerStats(ctx, id)
}

func (m *memory) ContainerMetrics(_ context.Context, id string) (*pod.Metrics, error) {
	if s, ok := m.stats[id]; ok {
		return s, nil
	}
	return nil, fmt.Errorf("cgroup of %s: %w", id, errdefs.ErrNotFound)
}

func (m *memory) PodMetrics(ctx context.Context, id string) (*pod.Metrics, error) {
	return m.ContainerMetrics(ctx, id)
}

func (m *memory) Events(since time.Time) *event.Subscription {
	if m.events == nil {
		closed := event.New(event.Options{})
		closed.Close()
		return closed.Subscribe(since)
	}
	return m.events.Subscribe(since)
}

func (m *memory) ExecSync(_ context.Context, id string, args []string, timeout time.Duration) (*pod.ExecResult, error) {
	m.asked = append(m.asked, id)
	m.exec, m.timeout = args, timeout
	if m.fail != nil {
		return nil, m.fail
	}
	return &m.result, nil
}

func (m *memory) ReopenLog(ctx context.Context, id string) error {
	m.reopened = id
	return m.StartContainer(ctx, id)
}

func (m *memory) PullImage(_ context.Context, podUID string, p *pod.Pull) (string, error) {
	m.pulled, m.pulledBy = p, podUID
	return "sha256:pulled", m.fail
}

func (m *memory) Image(_ context.Context, ref string) (*pod.Image, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, ref)
	for _, i := range m.images {
		if i.ID == ref || len(i.Tags) > 0 && i.Tags[0] == ref {
			return i, nil
		}
	}
	return nil, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
}

func (m *memory) ListImages(context.Context) ([]*pod.Image, error) { return m.images, m.fail }

func (m *memory) RemoveImage(ctx context.Context, ref string) error {
	_, err := m.Image(ctx, ref)
	return first(m.fail, err)
}

func (m *memory) ImageUsage(context.Context) (images, layers []pod.Usage, err error) {
	at := time.Unix(3, 0)
	return []pod.Usage{{Mountpoint: "/images", At: at, Bytes: 10, Inodes: 2}}, []pod.Usage{{Mountpoint: "/layers", At: at}}, m.fail
}

func (m *memory) Status(context.Context) (*pod.NodeStatus, error) { return &m.status, m.fail }

// The streams themselves are package streaming's.
func (m *memory) Exec(context.Context, string, *engine.Exec) (int32, error)            { return 0, nil }
func (m *memory) Attach(context.Context, string, engine.IO) error                      { return nil }
func (m *memory) PortForward(context.Context, string, int32, io.ReadWriteCloser) error { return nil }

// addresses hands out URLs and keeps what they stand for.
type addresses struct{ m *memory }

func (a addresses) Exec(r *runtime.ExecRequest) (string, error) { return a.give("exec", r) }

func (a addresses) Attach(r *runtime.AttachRequest) (string, error) { return a.give("attach", r) }

func (a addresses) PortForward(r *runtime.PortForwardRequest) (string, error) {
	return a.give("portforward", r)
}

func (a addresses) give(kind string, r any) (string, error) {
	a.m.urls = append(a.m.urls, r)
	return "http://127.0.0.1:1/" + kind + "/token", a.m.fail
}

func first(list ...error) error {
	for _, err := range list {
		if err != nil {
			return err
		}
	}
	return nil
}

// serve runs the services over m on a unix socket and returns a connection and the socket's path.
func serve(t *testing.T, m *memory, in cri.Interceptors) (*grpc.ClientConn, string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "cri.sock")
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := cri.NewServer(service(m), in)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Stop()
		if ended := <-served; ended != nil {
			t.Error(ended)
		}
	})
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(cri.MaxMessageSize), grpc.MaxCallSendMsgSize(cri.MaxMessageSize)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn, socket
}

func service(m *memory) *cri.Service {
	return cri.New(cri.Options{
		Pods: m, Containers: m, Checkpoints: m, Resizer: m, Views: m, Statistics: m, Events: m, Streams: m, Images: m, Node: m, URLs: addresses{m}, Version: "1.2.3",
	})
}

// sandboxConfig is the least that RunPodSandbox accepts.
func sandboxConfig() *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{Metadata: &runtime.PodSandboxMetadata{Name: "web", Uid: "u1", Namespace: "default"}}
}

// createRequest is the least that CreateContainer accepts.
func createRequest() *runtime.CreateContainerRequest {
	return &runtime.CreateContainerRequest{
		PodSandboxId: "pod0",
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "app"},
			Image:    &runtime.ImageSpec{Image: "sha256:abc"},
		},
		SandboxConfig: sandboxConfig(),
	}
}
