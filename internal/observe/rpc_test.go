package observe_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"gantry/internal/observe"
)

// services answer what a test wants of them.
type services struct {
	runtime.UnimplementedRuntimeServiceServer
	runtime.UnimplementedImageServiceServer
	err   error
	panic any
}

func (s *services) answer() error {
	if s.panic != nil {
		panic(s.panic)
	}
	return s.err
}

func (s *services) RunPodSandbox(context.Context, *runtime.RunPodSandboxRequest) (*runtime.RunPodSandboxResponse, error) {
	return &runtime.RunPodSandboxResponse{PodSandboxId: "p1"}, s.answer()
}

func (s *services) CreateContainer(context.Context, *runtime.CreateContainerRequest) (*runtime.CreateContainerResponse, error) {
	return &runtime.CreateContainerResponse{ContainerId: "c1"}, s.answer()
}

func (s *services) ContainerStatus(context.Context, *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error) {
	return &runtime.ContainerStatusResponse{}, s.answer()
}

func (s *services) PullImage(context.Context, *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	return &runtime.PullImageResponse{}, s.answer()
}

func (s *services) StreamContainers(*runtime.StreamContainersRequest, runtime.RuntimeService_StreamContainersServer) error {
	return s.answer()
}

// node is a server under observation.
type node struct {
	services services
	log      bytes.Buffer
	level    slog.LevelVar
	conn     *grpc.ClientConn
	http     http.Handler
	health   error
}

func start(t *testing.T) *node {
	t.Helper()
	n := &node{}
	log, err := observe.NewLogger(&n.log, observe.JSON, &n.level)
	if err != nil {
		t.Fatal(err)
	}
	reg := observe.NewRegistry()
	rpcs, err := observe.NewRPCs(log, reg)
	if err != nil {
		t.Fatal(err)
	}
	n.http = observe.Handler(reg, func(context.Context) error { return n.health })
	g := grpc.NewServer(grpc.UnaryInterceptor(rpcs.Unary), grpc.StreamInterceptor(rpcs.Stream))
	runtime.RegisterRuntimeServiceServer(g, &n.services)
	old := runtime.RuntimeService_ServiceDesc
	old.ServiceName = "runtime.v1alpha2.RuntimeService"
	g.RegisterService(&old, &n.services)
	runtime.RegisterImageServiceServer(g, &n.services)
	socket := filepath.Join(t.TempDir(), "s")
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = g.Serve(ln) }()
	t.Cleanup(g.Stop)
	if n.conn, err = grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.conn.Close() })
	return n
}

// lines are what was logged since the last time.
func (n *node) lines(t *testing.T) []map[string]any {
	t.Helper()
	var out []map[string]any
	for _, l := range strings.Split(strings.TrimSpace(n.log.String()), "\n") {
		if l == "" {
			continue
		}
		var m map[string]any
		if err := json.Unmarshal([]byte(l), &m); err != nil {
			t.Fatalf("%v: %s", err, l)
		}
		out = append(out, m)
	}
	n.log.Reset()
	return out
}

func TestOneLineAnRPC(t *testing.T) {
	n := start(t)
	client := runtime.NewRuntimeServiceClient(n.conn)
	sandbox := &runtime.PodSandboxConfig{Metadata: &runtime.PodSandboxMetadata{Name: "web", Namespace: "default"}}
	for _, c := range []struct {
		rule string
		call func() error
		want map[string]any
	}{
		{"a new pod has a name and an id", func() error {
			_, err := client.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{Config: sandbox})
			return err
		}, map[string]any{"method": "runtime.v1.RuntimeService/RunPodSandbox", "pod": "default/web", "pod_id": "p1", "code": "OK", "level": "INFO"}},
		{"a new container has a pod and an image", func() error {
			_, err := client.CreateContainer(t.Context(), &runtime.CreateContainerRequest{
				PodSandboxId: "p1", SandboxConfig: sandbox, Config: &runtime.ContainerConfig{
					Metadata: &runtime.ContainerMetadata{Name: "app"}, Image: &runtime.ImageSpec{Image: "sha256:abc", UserSpecifiedImage: "app:1"},
				},
			})
			return err
		}, map[string]any{"pod": "default/web", "pod_id": "p1", "container": "app", "container_id": "c1", "image": "app:1", "code": "OK"}},
		{"the name that was called is the name that is logged", func() error {
			return n.conn.Invoke(t.Context(), "/runtime.v1alpha2.RuntimeService/RunPodSandbox", &runtime.RunPodSandboxRequest{}, &runtime.RunPodSandboxResponse{})
		}, map[string]any{"method": "runtime.v1alpha2.RuntimeService/RunPodSandbox"}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if err := c.call(); err != nil {
				t.Fatal(err)
			}
			lines := n.lines(t)
			if len(lines) != 1 {
				t.Fatalf("%d lines: %v", len(lines), lines)
			}
			for k, v := range c.want {
				if lines[0][k] != v {
					t.Errorf("%s is %v, want %v", k, lines[0][k], v)
				}
			}
			if d, _ := lines[0]["duration"].(float64); d <= 0 {
				t.Errorf("no duration: %v", lines[0])
			}
		})
	}
}

func TestSecretsAreNotLogged(t *testing.T) {
	n := start(t)
	n.level.Set(slog.LevelDebug)
	_, err := runtime.NewImageServiceClient(n.conn).PullImage(t.Context(), &runtime.PullImageRequest{
		Image: &runtime.ImageSpec{Image: "app:1"}, Auth: &runtime.AuthConfig{Username: "joe", Password: "hunter2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if l := n.log.String(); strings.Contains(l, "hunter2") || !strings.Contains(l, "app:1") {
		t.Error(l)
	}
}

func TestLevels(t *testing.T) {
	n := start(t)
	n.level.Set(slog.LevelDebug)
	client := runtime.NewRuntimeServiceClient(n.conn)
	ask := func() { _, _ = client.ContainerStatus(t.Context(), &runtime.ContainerStatusRequest{ContainerId: "c"}) }
	change := func() { _, _ = client.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{}) }
	stream := func() {
		if s, err := client.StreamContainers(t.Context(), &runtime.StreamContainersRequest{}); err == nil {
			_, _ = s.Recv()
		}
	}
	for _, c := range []struct {
		rule string
		call func()
		err  error
		want string
	}{
		{"an idle kubelet does not fill the log", ask, nil, "DEBUG"},
		{"nor do streamed lists", stream, nil, "DEBUG"},
		{"asking for what is gone is no news", ask, status.Error(codes.NotFound, "gone"), "DEBUG"},
		{"a question that is not answered is", ask, status.Error(codes.Unavailable, "down"), "WARN"},
		{"a change is news", change, nil, "INFO"},
		{"a refusal is a warning", change, status.Error(codes.InvalidArgument, "no"), "WARN"},
		{"an unclassified error is an error", change, errors.New("what"), "ERROR"},
	} {
		t.Run(c.rule, func(t *testing.T) {
			n.services.err = c.err
			c.call()
			lines := n.lines(t)
			if len(lines) != 1 || lines[0]["level"] != c.want {
				t.Fatalf("want one line at %s: %v", c.want, lines)
			}
			if want, _ := lines[0]["error"].(string); want != status.Convert(c.err).Message() && c.err != nil {
				t.Errorf("the error is %q", want)
			}
		})
	}
}

func TestAPanicIsAnAnswer(t *testing.T) {
	n := start(t)
	client := runtime.NewRuntimeServiceClient(n.conn)
	n.services.panic = "boom"
	_, err := client.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{})
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "boom") {
		t.Errorf("got %v", err)
	}
	stream, err := client.StreamContainers(t.Context(), &runtime.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Internal {
		t.Errorf("got %v", err)
	}
	if l := n.log.String(); strings.Count(l, `"stack"`) != 2 || !strings.Contains(l, "rpc_test.go") {
		t.Errorf("no stack in the log: %s", l)
	}
	n.services.panic = nil
	if _, err := client.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{}); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

func TestMetricsAndHealth(t *testing.T) {
	n := start(t)
	client := runtime.NewRuntimeServiceClient(n.conn)
	_, _ = client.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{})
	n.services.err = status.Error(codes.NotFound, "gone")
	_, _ = client.ContainerStatus(t.Context(), &runtime.ContainerStatusRequest{})
	code, body := n.get(t, "/metrics")
	for _, want := range []string{
		`gantry_rpc_duration_seconds_count{code="OK",method="/runtime.v1.RuntimeService/RunPodSandbox"} 1`,
		`gantry_rpc_duration_seconds_count{code="NotFound",method="/runtime.v1.RuntimeService/ContainerStatus"} 1`,
		`gantry_rpc_running{method="/runtime.v1.RuntimeService/RunPodSandbox"} 0`,
		"go_goroutines", "process_resident_memory_bytes",
	} {
		if code != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%d, %s is missing", code, want)
		}
	}
	if code, body = n.get(t, "/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("healthy: %d %q", code, body)
	}
	n.health = errors.New("the keeper does not answer")
	if code, body = n.get(t, "/healthz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "keeper") {
		t.Errorf("sick: %d %q", code, body)
	}
}

func (n *node) get(t *testing.T, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	n.http.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func TestLogger(t *testing.T) {
	for s, want := range map[string]slog.Level{"debug": slog.LevelDebug, "INFO": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError} {
		if got, err := observe.ParseLevel(s); err != nil || got != want {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	if _, err := observe.ParseLevel("loud"); err == nil || !strings.Contains(err.Error(), "loud") {
		t.Errorf("got %v", err)
	}
	if _, err := observe.NewLogger(nil, "xml", slog.LevelInfo); err == nil || !strings.Contains(err.Error(), "xml") {
		t.Errorf("got %v", err)
	}
}

// What the libraries of Kubernetes have to say comes out as a line like any other.
func TestAdopt(t *testing.T) {
	var b bytes.Buffer
	log, err := observe.NewLogger(&b, observe.Text, slog.LevelInfo)
	if err != nil {
		t.Fatal(err)
	}
	old := slog.Default()
	t.Cleanup(func() { slog.SetDefault(old); klog.ClearLogger() })
	observe.Adopt(log)
	klog.Background().Error(errors.New("broken pipe"), "Unhandled Error")
	slog.Info("hello")
	if s := b.String(); !strings.Contains(s, `msg="Unhandled Error"`) || !strings.Contains(s, "component=kubernetes") || !strings.Contains(s, "msg=hello") {
		t.Error(s)
	}
}
