package docker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"

	"gantry/internal/engine"
	"gantry/internal/engine/docker"
	"gantry/internal/pod"
)

// TestExitThatOvertakesItsOOM has dockerd tell that a container was killed before it knows why.
func TestExitThatOvertakesItsOOM(t *testing.T) {
	for name, c := range map[string]struct {
		code   int
		events []string // after the exit's
		ours   bool     // the SIGKILL was sent by the engine
		oom    bool
		waits  bool
	}{
		"the kernel's":      {code: 137, events: []string{"oom"}, oom: true},
		"somebody's":        {code: 137, waits: true},
		"ours":              {code: 137, ours: true},
		"an end of its own": {code: 1},
	} {
		t.Run(name, func(t *testing.T) {
			d := &dying{code: c.code, events: make(chan string, 4)}
			e := overHTTP(t, d.handler())
			wait := patience // for another event that comes, or is not waited for
			if c.waits {
				wait = 100 * time.Millisecond
			}
			e.UseOOMWait(wait)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			told, err := e.Watch(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if c.ours {
				if err := e.SignalContainer(t.Context(), "key", engine.Signal{Name: "SIGKILL"}); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			d.ended.Store(true)
			for _, action := range append([]string{"die"}, c.events...) {
				d.events <- action
			}
			exit := firstExit(t, told)
			if exit.Code != int32(c.code) || exit.OOMKilled != c.oom {
				t.Errorf("told %+v; want code %d, OOM kill %t", exit, c.code, c.oom)
			}
			if took := time.Since(began); c.waits && took < wait {
				t.Errorf("told after %s; want %s for the other event to come", took, wait)
			}
		})
	}
}

// firstExit is that of the first event that tells one.
func firstExit(t *testing.T, told <-chan engine.Event) pod.Exit {
	t.Helper()
	late := time.After(patience)
	for {
		select {
		case ev, open := <-told:
			if !open {
				t.Fatal("the events ended")
			}
			if ev.Exit != nil {
				return *ev.Exit
			}
		case <-late:
			t.Fatalf("no exit within %v", patience)
		}
	}
}

// dying is a dockerd with one container, that does not know of OOM kills but by events.
type dying struct {
	code   int
	ended  atomic.Bool
	events chan string
}

func (d *dying) handler() http.Handler {
	mux := http.NewServeMux()
	labels := map[string]string{docker.LabelKey: "key", "io.kubernetes.docker.type": "container"}
	answer := func(path string, value func() any) {
		mux.HandleFunc("GET /v1.45"+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(value())
		})
	}
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("API-Version", "1.45") })
	answer("/info", func() any { return system.Info{CgroupDriver: "cgroupfs", CgroupVersion: "2", DockerRootDir: "/"} })
	answer("/containers/json", func() any { return []container.Summary{{ID: "id", Labels: labels}} })
	answer("/containers/id/json", func() any {
		state := &container.State{Status: container.StateRunning, Running: true, Pid: 1}
		if d.ended.Load() {
			state = &container.State{Status: container.StateExited, ExitCode: d.code, FinishedAt: time.Now().Format(time.RFC3339Nano)}
		}
		return container.InspectResponse{ID: "id", State: state, Config: &container.Config{Labels: labels}, HostConfig: &container.HostConfig{}}
	})
	mux.HandleFunc("POST /v1.45/containers/id/kill", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("GET /v1.45/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = http.NewResponseController(w).Flush()
		for {
			select {
			case action := <-d.events:
				fmt.Fprintf(w, `{"Type": "container", "Action": %q, "Actor": {"ID": "id", "Attributes": {%q: "key", "exitCode": "%d"}}, "timeNano": %d}`,
					action, docker.LabelKey, d.code, time.Now().UnixNano())
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	return mux
}
