package docker_test

import (
	"encoding/json"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/system"
)

// TestUsageOutlivesAFailedQuestion has a dockerd whose answer about its store fails now and then, as where a
// container is removed meanwhile.
func TestUsageOutlivesAFailedQuestion(t *testing.T) {
	var size atomic.Int64 // 0 is a failure
	images := overHTTP(t, diskUsage(func() int64 { return size.Load() })).Images()
	// ask tells what is answered after the last answer has become older, and once more when Docker has answered.
	ask := func(older time.Duration) (bytes uint64, err error) {
		images.AgeUsage(older)
		_, _, _ = images.Usage(t.Context())
		images.AgeUsage(0)
		used, _, err := images.Usage(t.Context())
		if err != nil {
			return 0, err
		}
		return used[0].Bytes, nil
	}
	for _, step := range []struct {
		rule   string
		docker int64
		older  time.Duration
		want   uint64
	}{
		{"the first answer", 100, 0, 100},
		{"a failure leaves it", 0, 3 * time.Minute, 100},
		{"the next answer comes soon after it", 200, 15 * time.Second, 200},
		{"a failure leaves that", 0, 3 * time.Minute, 200},
		{"but not for ever", 0, 11 * time.Minute, 0},
	} {
		size.Store(step.docker)
		if got, err := ask(step.older); got != step.want || (err != nil) != (step.want == 0) {
			t.Errorf("%s: %d, %v; want %d", step.rule, got, err, step.want)
		}
	}
}

// TestFirstUsageIsAskedForAgain has the answer fail that nothing older stands for.
func TestFirstUsageIsAskedForAgain(t *testing.T) {
	for fails, want := range map[int64]uint64{2: 100, 3: 0} {
		var asked atomic.Int64
		images := overHTTP(t, diskUsage(func() int64 {
			if asked.Add(1) <= fails {
				return 0
			}
			return 100
		})).Images()
		used, _, err := images.Usage(t.Context())
		switch {
		case want == 0 && !errdefs.IsUnavailable(err):
			t.Errorf("%d failures: %v, %v; want ErrUnavailable", fails, used, err)
		case want != 0 && (err != nil || used[0].Bytes != want):
			t.Errorf("%d failures: %v, %v; want %d", fails, used, err, want)
		}
	}
}

// diskUsage is a dockerd that says what its store occupies; a size of 0 is a failure.
func diskUsage(size func() int64) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("API-Version", "1.45") })
	mux.HandleFunc("GET /v1.45/info", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(system.Info{CgroupDriver: "cgroupfs", CgroupVersion: "2", DockerRootDir: "/"})
	})
	mux.HandleFunc("GET /v1.45/system/df", func(w http.ResponseWriter, _ *http.Request) {
		bytes := size()
		if bytes == 0 {
			http.Error(w, `{"message": "failed to retrieve container list"}`, http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"LayersSize": bytes})
	})
	return mux
}
