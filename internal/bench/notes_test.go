package bench_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/bench"
)

// silent is a runtime that has no answer to one call, fails at another, and says at first that it is not ready.
type silent struct {
	many
	cri.UnimplementedImageServiceServer
	versions atomic.Int32
	waits    bool // for the end of the time that its client gives the call
}

func (s *silent) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	if s.versions.Add(1) == 1 {
		return nil, status.Error(codes.Unknown, "server is not initialized yet")
	}
	return &cri.VersionResponse{}, nil
}

// ListContainerStats gives the call up before its client does, or after: the clock of either may be the first.
func (s *silent) ListContainerStats(ctx context.Context, _ *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	if s.waits {
		<-ctx.Done()
	}
	return nil, status.Error(codes.Canceled, "given up")
}

func (s *silent) ListPodSandboxStats(context.Context, *cri.ListPodSandboxStatsRequest) (*cri.ListPodSandboxStatsResponse, error) {
	return &cri.ListPodSandboxStatsResponse{}, nil
}

func (s *silent) ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	return nil, status.Error(codes.Internal, "it cannot be told")
}

func TestCrowdSaysWhatItDidNotGet(t *testing.T) {
	results := watch(t, new(silent), time.Minute)
	notes := strings.Join(results.Notes(), "\n")
	for _, want := range []string{"silent, 40 pods: 25 of 40 pods ran after ", "silent, 40 pods: ListContainerStats had no answer after ",
		"silent, 40 pods: ListPodSandbox failed: it cannot be told."} {
		if !strings.Contains(notes, want) {
			t.Errorf("no %q in\n%s", want, notes)
		}
	}
	measured := make(map[string]int)
	for _, r := range results.Rows() {
		measured[r.Metric] = r.N
	}
	if measured["ListPodSandboxStats"] == 0 || measured["ListContainerStats"] > 0 {
		t.Errorf("measured %v", measured)
	}
}

func TestACallIsGivenUpWhenItsTimeIsOver(t *testing.T) {
	results := watch(t, &silent{waits: true}, 10*time.Millisecond)
	if notes := strings.Join(results.Notes(), "\n"); !strings.Contains(notes, "silent, 40 pods: ListContainerStats had no answer after ") {
		t.Errorf("it is not said in\n%s", notes)
	}
	for _, r := range results.Rows() {
		if r.Metric == "ListContainerStats" {
			t.Errorf("measured %v", r)
		}
	}
}

// watch returns what a crowd of a runtime's pods told of it, when looks is the time for each call.
func watch(t *testing.T, s *silent, looks time.Duration) *bench.Results {
	t.Helper()
	results := bench.NewResults()
	c := &bench.Crowd{Counts: []int{40}, Launch: 1, Calls: 3, Looks: looks}
	err := dial(t, s).Crowd(t.Context(), c, func(count int) bench.Scope { return results.Scope(fmt.Sprint(count, " pods"), "silent") })
	if err != nil {
		t.Fatal(err)
	}
	return results
}
