package bench_test

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/bench"
)

// scribe is a runtime whose containers write the file that they have mounted to their log.
type scribe struct {
	many
	mu    sync.Mutex
	write map[string][2]string // guarded by mu: a container's file and its log
}

func (s *scribe) CreateContainer(_ context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := filepath.Join(r.SandboxConfig.LogDirectory, r.Config.LogPath)
	s.write[log] = [2]string{r.Config.Mounts[0].HostPath, log}
	return &cri.CreateContainerResponse{ContainerId: log}, os.MkdirAll(r.SandboxConfig.LogDirectory, 0o700)
}

func (s *scribe) StartContainer(_ context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	s.mu.Lock()
	files := s.write[r.ContainerId]
	s.mu.Unlock()
	content, err := os.ReadFile(files[0])
	if err != nil {
		return nil, err
	}
	return &cri.StartContainerResponse{}, os.WriteFile(files[1], content, 0o600)
}

func TestContainersOfALogAreInOnePodAndLeaveNothing(t *testing.T) {
	s, results, dir := &scribe{write: make(map[string][2]string)}, bench.NewResults(), t.TempDir()
	l := &bench.Logs{Pods: bench.Pods{LogDir: t.TempDir()}, Bytes: 3000, Line: 100, Containers: 3, Dir: dir, Timeout: time.Minute}
	target := dial(t, s)
	if err := target.Log(t.Context(), l, results.Scope("log", "scribe")); err != nil {
		t.Fatal(err)
	}
	if len(s.write) != 3 || s.pods.Load() != 0 {
		t.Errorf("%d containers, %d pods are left", len(s.write), s.pods.Load())
	}
	if rows := results.Rows(); len(rows) != 1 || rows[0].Metric != "until the last line" {
		t.Errorf("rows %v", rows)
	}
	for log := range s.write {
		if _, err := os.Stat(log); err == nil {
			t.Errorf("%s is left", log)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v of the lines are left, %v", left, err)
	}
}
