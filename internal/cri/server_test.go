package cri_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/pod"
)

func TestEveryRPCAnswersUnderBothNames(t *testing.T) {
	conn, _ := serve(t, &memory{}, cri.Interceptors{})
	for _, d := range []grpc.ServiceDesc{runtime.RuntimeService_ServiceDesc, runtime.ImageService_ServiceDesc} {
		for _, version := range []string{"runtime.v1", "runtime.v1alpha2"} {
			service := "/" + version + strings.TrimPrefix(d.ServiceName, "runtime.v1") + "/"
			for _, m := range d.Methods {
				err := conn.Invoke(t.Context(), service+m.MethodName, &emptypb.Empty{}, &emptypb.Empty{})
				checkBuilt(t, service+m.MethodName, err)
			}
			for _, s := range d.Streams {
				err := drain(t.Context(), conn, service+s.StreamName)
				checkBuilt(t, service+s.StreamName, err)
			}
		}
	}
}

func checkBuilt(t *testing.T, method string, err error) {
	t.Helper()
	if status.Code(err) == codes.Unimplemented {
		t.Errorf("%s: %v", method, err)
	}
}

func drain(ctx context.Context, conn *grpc.ClientConn, method string) error {
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if err := errors.Join(s.SendMsg(&emptypb.Empty{}), s.CloseSend()); err != nil {
		return err
	}
	return s.RecvMsg(&emptypb.Empty{}) // io.EOF, whose code is Unknown, when the list is empty
}

func TestVersionNamesTheAPIThatWasCalled(t *testing.T) {
	conn, _ := serve(t, &memory{}, cri.Interceptors{})
	for api, want := range map[string]string{"runtime.v1": "v1", "runtime.v1alpha2": "v1alpha2"} {
		var v runtime.VersionResponse
		if err := conn.Invoke(t.Context(), "/"+api+".RuntimeService/Version", &runtime.VersionRequest{}, &v); err != nil {
			t.Fatal(err)
		}
		if v.GetRuntimeApiVersion() != want || v.GetRuntimeName() != "gantry" || v.GetVersion() != "0.1.0" || v.GetRuntimeVersion() != "1.2.3" {
			t.Errorf("%s: %v", api, &v)
		}
	}
}

// A program that was generated from the CRI of Kubernetes 1.25 runs against the socket.
func TestOldClient(t *testing.T) {
	m := &memory{images: []*pod.Image{{ID: "sha256:abc", Tags: []string{"example.org/app:1"}, Size: 42, User: "1000"}}}
	if _, err := service(m).RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{Config: sandboxConfig()}); err != nil {
		t.Fatal(err)
	}
	_, socket := serve(t, m, cri.Interceptors{})
	bin := filepath.Join(t.TempDir(), "v1alpha2")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".")
	build.Dir = filepath.Join("..", "..", "test", "v1alpha2")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), bin, socket).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var got struct {
		Version struct {
			API string `json:"runtime_api_version"`
		} `json:"version"`
		Pods []struct {
			ID       string `json:"id"`
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		} `json:"pods"`
		Images []struct {
			ID   string   `json:"id"`
			Tags []string `json:"repo_tags"`
			Size int      `json:"size"`
		} `json:"images"`
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got.Version.API != "v1alpha2" || len(got.Pods) != 1 || got.Pods[0].Metadata.Name != "web" ||
		len(got.Images) != 1 || got.Images[0].ID != "sha256:abc" || got.Images[0].Size != 42 {
		t.Errorf("%s", out)
	}
}

func TestErrorsHaveTheCodeOfTheirClass(t *testing.T) {
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{errdefs.ErrInvalidArgument, codes.InvalidArgument},
		{errdefs.ErrNotFound, codes.NotFound},
		{errdefs.ErrAlreadyExists, codes.AlreadyExists},
		{errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
		{errdefs.ErrUnavailable, codes.Unavailable},
		{errdefs.ErrNotImplemented, codes.Unimplemented},
		{errdefs.ErrResourceExhausted, codes.ResourceExhausted},
		{errdefs.ErrPermissionDenied, codes.PermissionDenied},
		{errdefs.ErrInternal, codes.Internal},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{status.Error(codes.OutOfRange, "a status keeps its code"), codes.OutOfRange},
		{errors.New("an error without a class"), codes.Unknown},
	} {
		conn, _ := serve(t, &memory{fail: fmt.Errorf("attach network: %w", c.err)}, cri.Interceptors{})
		_, err := runtime.NewRuntimeServiceClient(conn).RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{Config: sandboxConfig()})
		if status.Code(err) != c.want || !strings.HasPrefix(status.Convert(err).Message(), "attach network: ") {
			t.Errorf("%v: got %v, want %v", c.err, err, c.want)
		}
	}
}

func TestMessagesUpToSixteenMiB(t *testing.T) {
	m := &memory{result: pod.ExecResult{Stdout: make([]byte, 15<<20)}}
	conn, _ := serve(t, m, cri.Interceptors{})
	client := runtime.NewRuntimeServiceClient(conn)
	res, err := client.ExecSync(t.Context(), &runtime.ExecSyncRequest{ContainerId: "c", Cmd: []string{strings.Repeat("x", 15<<20)}})
	if err != nil {
		t.Fatal(err)
	}
	if len(res.GetStdout()) != 15<<20 || len(m.exec[0]) != 15<<20 {
		t.Errorf("got %d bytes, sent %d", len(res.GetStdout()), len(m.exec[0]))
	}
}
