package bench_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/bench"
)

// puller is a runtime whose pulls end when there are as many as are waited for.
type puller struct {
	slow
	cri.UnimplementedImageServiceServer
	want    int
	mu      sync.Mutex
	refs    []string      // guarded by mu
	enough  chan struct{} // closed when all have come
	removed []string      // guarded by mu
	broken  string        // a reference that cannot be pulled
}

func (p *puller) PullImage(ctx context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	p.mu.Lock()
	p.refs = append(p.refs, r.Image.Image)
	if len(p.refs) == p.want {
		close(p.enough)
	}
	p.mu.Unlock()
	if r.Image.Image == p.broken {
		return nil, status.Error(codes.NotFound, "it is not there")
	}
	select {
	case <-p.enough:
		return &cri.PullImageResponse{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *puller) RemoveImage(_ context.Context, r *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removed = append(p.removed, r.Image.Image)
	return &cri.RemoveImageResponse{}, nil
}

func TestPullsAreSideBySideAndLeaveNothing(t *testing.T) {
	for rule, c := range map[string]struct {
		broken string
		rows   int
	}{"all there": {"", 3}, "one cannot be pulled": {"b", 0}} {
		t.Run(rule, func(t *testing.T) {
			p := &puller{want: 2, enough: make(chan struct{}), broken: c.broken}
			target, results := dial(t, p), bench.NewResults()
			root := t.TempDir()
			if err := os.WriteFile(filepath.Join(root, "cpu.stat"), []byte("usage_usec 1500\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			var err error
			if target.Cgroup, err = bench.OpenCgroup(root, "."); err != nil {
				t.Fatal(err)
			}
			if err = target.Pull(t.Context(), []string{"a", "b"}, results.Scope("pull", "puller")); (err != nil) != (c.broken != "") {
				t.Errorf("%v", err)
			}
			slices.Sort(p.removed)
			if !slices.Equal(p.removed, []string{"a", "b"}) {
				t.Errorf("removed %v", p.removed)
			}
			if rows := results.Rows(); len(rows) != c.rows {
				t.Errorf("rows %v", rows)
			}
		})
	}
}
