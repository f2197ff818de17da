package docker_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os/exec"
	"syscall"
	"testing"

	"github.com/moby/moby/api/types/system"

	"gantry/internal/engine"
)

// TestExecThatIsGivenUpBeforeItBegan has a dockerd that begins a process after nobody waits for it any more, and calls
// it running before that.
func TestExecThatIsGivenUpBeforeItBegan(t *testing.T) {
	process := exec.CommandContext(t.Context(), "sleep", "infinity")
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- process.Wait() }()

	mux, answer := played("running")
	answer("POST /v1.45/containers/c/exec", func() any { return map[string]any{"Id": "x"} })
	ctx, giveUp := context.WithCancelCause(t.Context())
	enough := errors.New("nobody waits any more")
	over := make(chan struct{})
	mux.HandleFunc("POST /v1.45/exec/x/start", func(http.ResponseWriter, *http.Request) {
		giveUp(enough)
		<-over
	})
	states := make(chan map[string]any, 2)
	states <- map[string]any{"ID": "x", "Running": false, "Pid": 0}
	states <- map[string]any{"ID": "x", "Running": true, "Pid": 0}
	answer("GET /v1.45/exec/x/json", func() any {
		select {
		case state := <-states:
			return state
		default:
			return map[string]any{"ID": "x", "Running": true, "Pid": process.Process.Pid}
		}
	})

	e := overHTTP(t, mux)
	t.Cleanup(func() { close(over) }) // before the server waits for its handlers
	if _, err := e.Exec(ctx, "key", &engine.Exec{Args: []string{"sleep"}}); !errors.Is(err, enough) {
		t.Errorf("%v; want why it was given up", err)
	}
	var exit *exec.ExitError
	select {
	case err := <-ended:
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("the process ended with %v; want SIGKILL", err)
		}
	case <-overTime(t):
		t.Error("the process that nobody waits for goes on")
	}
}

// played is a dockerd with one container.
func played(status string) (mux *http.ServeMux, answer func(pattern string, v func() any)) {
	mux = http.NewServeMux()
	answer = func(pattern string, v func() any) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(v())
		})
	}
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("API-Version", "1.45") })
	answer("GET /v1.45/info", func() any { return system.Info{CgroupDriver: "cgroupfs", CgroupVersion: "2"} })
	answer("GET /v1.45/containers/json", func() any { return []any{map[string]any{"Id": "c"}} })
	answer("GET /v1.45/containers/c/json", func() any {
		state := map[string]any{"Status": status, "Running": status == "running", "Pid": 1}
		return map[string]any{"Id": "c", "State": state, "Config": map[string]any{}, "HostConfig": map[string]any{}}
	})
	return mux, answer
}

// TestStartThatIsGivenUp has a dockerd that starts a container after nobody waits for it any more.
func TestStartThatIsGivenUp(t *testing.T) {
	mux, _ := played("created")
	ctx, giveUp := context.WithCancelCause(t.Context())
	enough := errors.New("nobody waits any more")
	late, killed := make(chan struct{}), make(chan string, 2)
	mux.HandleFunc("POST /v1.45/containers/c/start", func(w http.ResponseWriter, _ *http.Request) {
		giveUp(enough)
		<-late
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /v1.45/containers/c/kill", func(_ http.ResponseWriter, r *http.Request) { killed <- r.FormValue("signal") })
	e := overHTTP(t, mux)
	if _, err := e.StartContainer(ctx, "key"); !errors.Is(err, enough) {
		t.Errorf("%v; want why it was given up", err)
	}
	select {
	case <-killed:
		t.Error("it was killed before it was started")
	default:
	}
	close(late)
	select {
	case signal := <-killed:
		if signal != "SIGKILL" {
			t.Errorf("it was sent %s", signal)
		}
	case <-overTime(t):
		t.Error("a container that nobody wants started runs")
	}
}

// overTime is closed when a test has taken longer than anything may.
func overTime(t *testing.T) <-chan struct{} {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx.Done()
}
