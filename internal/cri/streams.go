package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// ExecSync runs a command to its end. Output beyond the backend's bound is discarded, not an error.
func (s *Service) ExecSync(ctx context.Context, req *runtime.ExecSyncRequest) (*runtime.ExecSyncResponse, error) {
	if err := checkCommand(req.GetContainerId(), req.GetCmd()); err != nil {
		return nil, err
	}
	timeout, err := seconds("timeout", req.GetTimeout())
	if err != nil {
		return nil, err
	}
	r, err := s.streams.ExecSync(ctx, req.GetContainerId(), req.GetCmd(), timeout)
	if err != nil {
		return nil, err
	}
	if r.Discarded > 0 {
		s.log.WarnContext(ctx, "output of ExecSync cut", "container", req.GetContainerId(), "discarded", r.Discarded)
	}
	return &runtime.ExecSyncResponse{Stdout: r.Stdout, Stderr: r.Stderr, ExitCode: r.ExitCode}, nil
}

// Exec answers with the address at which the command will run, once, for whoever comes first.
func (s *Service) Exec(ctx context.Context, req *runtime.ExecRequest) (*runtime.ExecResponse, error) {
	if err := checkCommand(req.GetContainerId(), req.GetCmd()); err != nil {
		return nil, err
	}
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	c, err := s.running(ctx, req.GetContainerId())
	if err != nil {
		return nil, err
	}
	full := proto.CloneOf(req)
	full.ContainerId = c.ID
	url, err := s.urls.Exec(full)
	if err != nil {
		return nil, err
	}
	return &runtime.ExecResponse{Url: url}, nil
}

// Attach answers with the address at which the container's own streams can be had.
func (s *Service) Attach(ctx context.Context, req *runtime.AttachRequest) (*runtime.AttachResponse, error) {
	if err := checkID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	if err := checkStreams(req); err != nil {
		return nil, err
	}
	c, err := s.running(ctx, req.GetContainerId())
	if err != nil {
		return nil, err
	}
	full := proto.CloneOf(req)
	full.ContainerId = c.ID
	url, err := s.urls.Attach(full)
	if err != nil {
		return nil, err
	}
	return &runtime.AttachResponse{Url: url}, nil
}

// PortForward answers with the address at which the sandbox's ports can be reached.
func (s *Service) PortForward(ctx context.Context, req *runtime.PortForwardRequest) (*runtime.PortForwardResponse, error) {
	if err := checkID("pod_sandbox_id", req.GetPodSandboxId()); err != nil {
		return nil, err
	}
	for _, p := range req.GetPort() {
		if p < 1 || p > 65535 {
			return nil, invalid("port", "%d is not between 1 and 65535", p)
		}
	}
	sb, err := s.pods.Pod(ctx, req.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if sb.State != pod.SandboxReady {
		return nil, fmt.Errorf("sandbox %s is not ready: %w", sb.ID, errdefs.ErrFailedPrecondition)
	}
	full := proto.CloneOf(req)
	full.PodSandboxId = sb.ID
	url, err := s.urls.PortForward(full)
	if err != nil {
		return nil, err
	}
	return &runtime.PortForwardResponse{Url: url}, nil
}

// ReopenContainerLog makes the log begin anew at its path, after somebody renamed the file.
func (s *Service) ReopenContainerLog(ctx context.Context, req *runtime.ReopenContainerLogRequest) (*runtime.ReopenContainerLogResponse, error) {
	if err := checkID("container_id", req.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtime.ReopenContainerLogResponse{}, s.streams.ReopenLog(ctx, req.GetContainerId())
}

func checkCommand(id string, cmd []string) error {
	if err := checkID("container_id", id); err != nil {
		return err
	}
	if len(cmd) == 0 || cmd[0] == "" {
		return invalid("cmd", "must not be empty")
	}
	return checkStrings("cmd", cmd)
}

// streamFlags are what ExecRequest and AttachRequest have in common.
type streamFlags interface {
	GetTty() bool
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
}

// checkStreams holds the CRI's rules: at least one stream, and one output where there is a terminal.
func checkStreams(r streamFlags) error {
	if r.GetTty() && r.GetStderr() {
		return invalid("stderr", "cannot be set together with tty")
	}
	if !r.GetStdin() && !r.GetStdout() && !r.GetStderr() {
		return invalid("stdin, stdout, stderr", "one of them must be set")
	}
	return nil
}

// running lets a client know at once, and by gRPC code, what a stream could only tell later.
func (s *Service) running(ctx context.Context, id string) (*pod.Container, error) {
	c, err := s.views.Container(ctx, id)
	if err != nil {
		return nil, err
	}
	if c.State != pod.ContainerRunning {
		return nil, fmt.Errorf("container %s is %s, not running: %w", c.ID, c.State, errdefs.ErrFailedPrecondition)
	}
	return c, nil
}
