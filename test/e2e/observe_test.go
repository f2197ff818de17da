package e2e_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/leftovers"
	"gantry/test/node"
)

// reloads sends SIGHUP and waits until Status is as it is wanted.
func reloads(t *testing.T, n *node.Node, want func(*runtimeapi.StatusResponse) bool) {
	t.Helper()
	if err := syscall.Kill(n.Pid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(leftovers.Patience); ; <-tick.C {
		st, err := n.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		if want(st) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the reload does not show: %v\n%s", st, n.LogTail())
		}
	}
}

func TestReloadTakesANewRuntimeAndSurvivesABrokenFile(t *testing.T) {
	crun, err := exec.LookPath("crun")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config.toml")
	write := func(text string) {
		t.Helper()
		if failed := os.WriteFile(file, []byte(text), 0o600); failed != nil {
			t.Fatal(failed)
		}
	}
	write("")
	n := node.Start(t, node.Options{Runtime: "crun", Flags: []string{"--config", file}})
	has := func(st *runtimeapi.StatusResponse) bool {
		return slices.ContainsFunc(st.GetRuntimeHandlers(), func(h *runtimeapi.RuntimeHandler) bool { return h.GetName() == "second" })
	}
	write("[runtime.paths]\nsecond = '" + crun + "'\n")
	reloads(t, n, has)

	n.Pull(node.Busybox(t))
	res, err := n.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.Sandbox("reloaded"), RuntimeHandler: "second"})
	if err != nil {
		t.Fatalf("a pod of the new handler: %v", err)
	}
	defer n.RemovePod(res.GetPodSandboxId())

	write("[runtime\n")
	reloads(t, n, func(st *runtimeapi.StatusResponse) bool {
		told := slices.ContainsFunc(st.GetStatus().GetConditions(), func(c *runtimeapi.RuntimeCondition) bool {
			return c.GetType() == "GantryConfigurationCurrent" && !c.GetStatus() && strings.Contains(c.GetMessage(), "config.toml:1")
		})
		return told && has(st)
	})
	write("[runtime.paths]\nsecond = '" + crun + "'\n")
	reloads(t, n, func(st *runtimeapi.StatusResponse) bool { return len(st.GetStatus().GetConditions()) == 2 && has(st) })
}

func TestTracesOfAPodReachACollector(t *testing.T) {
	bodies := make(chan []byte, 1000)
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if body, err := io.ReadAll(r.Body); err == nil {
			bodies <- body
		}
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50") // milliseconds
	n := node.Start(t, node.Options{Runtime: "crun", Network: "cni"})
	id, _ := n.Launch(n.Sandbox("traced"), node.Container("main", n.Pull(node.Busybox(t)), "sleep", "100000"))
	n.RemovePod(id)
	wanted := []string{
		"runtime.v1.RuntimeService/RunPodSandbox", "sandbox create", "network attach", "undo network attach",
		"cni bridge ADD", "cni portmap DEL", "crun create", "runtime start", "runtime delete", "sha256:", "layer",
	}
	late := time.NewTimer(leftovers.Patience)
	defer late.Stop()
	for len(wanted) > 0 {
		select {
		case body := <-bodies:
			wanted = slices.DeleteFunc(wanted, func(name string) bool { return bytes.Contains(body, []byte(name)) })
		case <-late.C:
			t.Fatalf("no spans %q\n%s", wanted, n.LogTail())
		}
	}
}
