package docker_test

import (
	"encoding/json"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/api/types/system"
)

// TestUsageOutlivesAFailedQuestion has a dockerd whose answer about its store fails now and then, as where a
// container is removed meanwhile.
func TestUsageOutlivesAFailedQuestion(t *testing.T) {
	var size atomic.Int64 // 0 is a failure
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("API-Version", "1.45") })
	mux.HandleFunc("GET /v1.45/info", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(system.Info{CgroupDriver: "cgroupfs", CgroupVersion: "2", DockerRootDir: "/"})
	})
	mux.HandleFunc("GET /v1.45/system/df", func(w http.ResponseWriter, _ *http.Request) {
		if size.Load() == 0 {
			http.Error(w, `{"message": "failed to retrieve container list"}`, http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"LayersSize": size.Load()})
	})
	images := overHTTP(t, mux).Images()
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
