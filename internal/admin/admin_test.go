package admin_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"gantry/internal/admin"
	"gantry/internal/pod"
)

// puller pulls when it is told how.
type puller func(p *pod.Pull) (string, error)

func (f puller) PullImage(_ context.Context, _ string, p *pod.Pull) (string, error) { return f(p) }

func serve(t *testing.T, pulls *admin.Pulls) *admin.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), admin.SocketName)
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(admin.Handler(admin.Parts{Pulls: pulls, Build: admin.ReadBuild(admin.Build{Version: "v1"})}))
	srv.Listener = ln
	srv.Start()
	t.Cleanup(srv.Close)
	c := admin.NewClient(socket)
	t.Cleanup(c.Close)
	return c
}

func TestPullsShowTheirProgressWhileTheyRun(t *testing.T) {
	var pulls admin.Pulls
	c := serve(t, &pulls)
	told := 0
	id, err := pulls.Pull(t.Context(), puller(func(p *pod.Pull) (string, error) {
		p.Progress(pod.LayerProgress{Digest: "a", Done: 1, Total: 10})
		p.Progress(pod.LayerProgress{Digest: "b"})
		p.Progress(pod.LayerProgress{Digest: "a", Done: 7, Total: 10})
		got, err := c.Pulls(t.Context())
		if err != nil || len(got) != 1 {
			t.Fatalf("%v, %v", got, err)
		}
		want := []admin.Layer{{Digest: "a", Done: 7, Total: 10}, {Digest: "b"}}
		if diff := cmp.Diff(want, got[0].Layers); diff != "" || got[0].Ref != "busybox" {
			t.Errorf("%s %s", got[0].Ref, diff)
		}
		return "sha256:1", nil
	}), "uid", &pod.Pull{Ref: "busybox", Progress: func(pod.LayerProgress) { told++ }})
	if id != "sha256:1" || err != nil {
		t.Errorf("%q, %v", id, err)
	}
	if told != 3 {
		t.Errorf("the caller was told %d times", told)
	}
	if left := pulls.List(); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestFailedPullIsForgotten(t *testing.T) {
	var pulls admin.Pulls
	bad := errors.New("no")
	if _, err := pulls.Pull(t.Context(), puller(func(*pod.Pull) (string, error) { return "", bad }), "", &pod.Pull{}); !errors.Is(err, bad) {
		t.Error(err)
	}
	if left := pulls.List(); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

func TestReadingTakesGet(t *testing.T) {
	h := admin.Handler(admin.Parts{Pulls: &admin.Pulls{}})
	for _, path := range []string{"/pulls", "/build", "/debug/pprof/"} {
		for method, want := range map[string]int{http.MethodGet: http.StatusOK, http.MethodPost: http.StatusMethodNotAllowed} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
			if w.Code != want {
				t.Errorf("%s %s: %d", method, path, w.Code)
			}
		}
	}
}

func TestNoServer(t *testing.T) {
	c := admin.NewClient(filepath.Join(t.TempDir(), "absent"))
	if _, err := c.Pulls(t.Context()); err == nil {
		t.Error("no error")
	}
}
