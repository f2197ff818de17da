package bench_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/bench"
)

// slow is a runtime whose containers' program is ready when somebody has opened its log, not before.
type slow struct {
	cri.UnimplementedRuntimeServiceServer
	log   string // a FIFO
	ready atomic.Bool
	calls atomic.Int32 // that came when the program could be asked
}

func (s *slow) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{}, nil
}

func (s *slow) RunPodSandbox(_ context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	if err := os.MkdirAll(r.Config.LogDirectory, 0o700); err != nil {
		return nil, err
	}
	s.log = filepath.Join(r.Config.LogDirectory, "main_0.log")
	return &cri.RunPodSandboxResponse{PodSandboxId: "p"}, unix.Mkfifo(s.log, 0o600)
}

func (s *slow) CreateContainer(context.Context, *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	return &cri.CreateContainerResponse{ContainerId: "c"}, nil
}

func (s *slow) StartContainer(context.Context, *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	go func() {
		f, err := os.OpenFile(s.log, os.O_WRONLY, 0) // waits for a reader
		if err != nil {
			return
		}
		s.ready.Store(true)
		_, _ = f.WriteString("ready\n")
		_ = f.Close()
	}()
	return &cri.StartContainerResponse{}, nil
}

func (s *slow) asked() error {
	if !s.ready.Load() {
		return status.Error(codes.FailedPrecondition, "the program is not ready")
	}
	s.calls.Add(1)
	return nil
}

func (s *slow) ExecSync(context.Context, *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	return &cri.ExecSyncResponse{}, s.asked()
}

func (s *slow) StopContainer(context.Context, *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	return &cri.StopContainerResponse{}, s.asked()
}

func (s *slow) RemoveContainer(context.Context, *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	return &cri.RemoveContainerResponse{}, nil
}

func (s *slow) StopPodSandbox(context.Context, *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	return &cri.StopPodSandboxResponse{}, nil
}

func (s *slow) RemovePodSandbox(context.Context, *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	return &cri.RemovePodSandboxResponse{}, nil
}

// dial serves a runtime and returns it as what is measured.
func dial(t *testing.T, s cri.RuntimeServiceServer) *bench.Target {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(g, s)
	if images, ok := s.(cri.ImageServiceServer); ok {
		cri.RegisterImageServiceServer(g, images)
	}
	go func() { _ = g.Serve(ln) }()
	t.Cleanup(g.Stop)
	target, err := bench.Dial(t.Context(), "slow", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Close() })
	return target
}

// A program that gets SIGTERM before it can be asked lives on for the whole grace period, as the first
// process of a PID namespace: that is not what a stop takes.
func TestLifeWaitsUntilTheProgramCanBeAsked(t *testing.T) {
	s := new(slow)
	target := dial(t, s)
	lives := &bench.Lives{Pods: bench.Pods{Image: "i", LogDir: t.TempDir()}, Count: 1, Workers: 1}
	if err := target.Life(t.Context(), lives, bench.NewResults().Scope("life", "slow")); err != nil {
		t.Fatal(err)
	}
	if n := s.calls.Load(); n != 2 {
		t.Errorf("%d calls asked the program, want an exec and a stop", n)
	}
}

// many is a runtime that counts its pods.
type many struct {
	slow
	pods atomic.Int32
}

func (m *many) RunPodSandbox(context.Context, *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	return &cri.RunPodSandboxResponse{PodSandboxId: fmt.Sprint(m.pods.Add(1))}, nil
}

func (m *many) StartContainer(context.Context, *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	return &cri.StartContainerResponse{}, nil
}

func (m *many) RemovePodSandbox(context.Context, *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	m.pods.Add(-1)
	return &cri.RemovePodSandboxResponse{}, nil
}

func TestCrowdGrowsAsFarAsThereIsTime(t *testing.T) {
	for rule, c := range map[string]struct {
		crowd  bench.Crowd
		joined []float64
		left   int32
	}{
		"from one count to the next":                        {bench.Crowd{Counts: []int{25, 60}}, []float64{25, 60}, 0},
		"those that tell what one costs join after its end": {bench.Crowd{Counts: []int{40, 60}, Launch: 1}, []float64{25, 35}, 0},
		"a small one":                     {bench.Crowd{Counts: []int{2}}, []float64{2}, 0},
		"one that is left to its runtime": {bench.Crowd{Counts: []int{30}, Leave: true}, []float64{30}, 30},
	} {
		t.Run(rule, func(t *testing.T) {
			m := new(many)
			results := bench.NewResults()
			err := dial(t, m).Crowd(t.Context(), &c.crowd, func(count int) bench.Scope { return results.Scope(fmt.Sprint(count), "many") })
			if err != nil {
				t.Fatal(err)
			}
			var joined []float64
			for _, r := range results.Rows() {
				switch r.Metric {
				case "pods that joined in time":
					joined = append(joined, r.Median)
				case "RunPodSandbox, 10th", "RunPodSandbox, last", "StartContainer, 10th", "StartContainer, last":
					if r.N != min(10, c.crowd.Counts[0]) {
						t.Errorf("%s of %s: %d samples", r.Metric, r.Case, r.N)
					}
				}
			}
			if !slices.Equal(joined, c.joined) || m.pods.Load() != c.left {
				t.Errorf("%v pods joined, %d were left; want %v and %d", joined, m.pods.Load(), c.joined, c.left)
			}
		})
	}
}
