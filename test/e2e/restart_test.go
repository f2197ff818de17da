package e2e_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/leftovers"
	"gantry/test/node"
)

// counts writes a number ten times a second.
const counts = `i=0; while :; do echo "n=$i"; i=$((i+1)); sleep 0.1; done`

func TestAServerThatStopsTouchesNoContainer(t *testing.T) {
	for _, env := range environments {
		t.Run(env.name, func(t *testing.T) {
			n := node.Start(t, env.options)
			ref := warm(t, n)
			leavesNothing(t, n)
			pod, container := n.Launch(n.Sandbox("stays"), node.Container("main", ref, "sh", "-c", counts))
			before, ip := n.Container(container), n.Pod(pod).Network.Ip
			for _, end := range []func(){n.Stop, n.Kill} {
				end()
				seen := logLines(n, before.LogPath)
				n.Eventually("the log goes on without the server", func() bool { return logLines(n, before.LogPath) > seen+3 })
				n.Restart()
				after := n.Container(container)
				if after.State != runtimeapi.ContainerState_CONTAINER_RUNNING || after.StartedAt != before.StartedAt {
					t.Errorf("after the restart: %v started %d, before: %v started %d", after.State, after.StartedAt, before.State, before.StartedAt)
				}
				if p := n.Pod(pod); p.State != runtimeapi.PodSandboxState_SANDBOX_READY || p.Network.Ip != ip {
					t.Errorf("after the restart the pod is %v with address %s, was %s", p.State, p.Network.Ip, ip)
				}
				if out := n.Exec(container, "echo", "here"); out != "here\n" {
					t.Errorf("exec after the restart: %q", out)
				}
			}
			n.RemovePod(pod)
		})
	}
}

func TestContainersThatEndWhileTheServerIsDown(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	leavesNothing(t, n)
	pod, container := n.Launch(n.Sandbox("ends"), node.Container("main", ref, "sh", "-c",
		"trap 'echo bye; exit 23' TERM; echo ready; while :; do sleep 0.05; done"))
	n.Eventually("the container is ready", func() bool { return strings.Contains(n.ReadLog(container), "ready") })
	path, pid := n.Container(container).LogPath, n.ContainerPid("while :; do sleep 0.05")
	n.Kill()
	node.Terminate(t, pid)
	n.Eventually("its last word is in the log", func() bool { return strings.Contains(node.ReadFile(t, path), "bye") })
	n.Restart()
	if s := n.Ended(container); s.ExitCode != 23 || s.Reason != "Error" || s.FinishedAt < s.StartedAt {
		t.Errorf("exit code %d, reason %s, started %d, finished %d; want 23, Error", s.ExitCode, s.Reason, s.StartedAt, s.FinishedAt)
	}
	n.RemovePod(pod)
}

func TestServersSideBySide(t *testing.T) {
	first := node.Start(t, node.Options{Flags: []string{"--bridge", "gantry1", "--subnet", "10.91.0.0/16"}})
	second := node.Start(t, node.Options{Runtime: "runc", Flags: []string{"--bridge", "gantry2", "--subnet", "10.92.0.0/16"}})
	var pods []string
	for _, n := range []*node.Node{first, second} {
		ref := warm(t, n)
		pod, container := n.Launch(n.Sandbox("same-name"), node.Container("main", ref, "sleep", "100000"))
		pods = append(pods, pod)
		if out := n.Exec(container, "hostname"); out != "same-name\n" {
			t.Errorf("hostname %q", out)
		}
	}
	for i, n := range []*node.Node{first, second} {
		r, err := n.Runtime.ListPodSandbox(n.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil || len(r.Items) != 1 || r.Items[0].Id != pods[i] {
			t.Errorf("server %d lists %v, error %v", i, r.GetItems(), err)
		}
	}
	first.Stop()
	first.Restart()
	for i, n := range []*node.Node{first, second} {
		n.RemovePod(pods[i])
	}
}

// A second server on the same state directory must not take over from the first.
func TestTwoServersOnOneStateDirectory(t *testing.T) {
	n := node.Start(t, node.Options{})
	cmd := n.ServeCommand()
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Error("a second server on the same state directory started")
	}
	if !strings.Contains(string(out), n.State) && !strings.Contains(string(out), n.Lib) {
		t.Errorf("%q does not name the directory in use", out)
	}
	if _, err = n.Runtime.Version(n.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Errorf("the first server no longer answers: %v", err)
	}
}

func TestConfigurationErrorsNameTheirOption(t *testing.T) {
	n := node.Prepare(t, node.Options{})
	for _, tc := range []struct{ name, flag, value, words string }{
		{"unknown network", "--network", "pigeons", "pigeons"},
		{"unknown log level", "--log-level", "loud", "loud"},
		{"relative root", "--root", "here", "here"},
		{"missing file", "--config", "/nonexistent/config.toml", "/nonexistent/config.toml"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := n.GantryCommand(n.Context(), "serve", tc.flag, tc.value).CombinedOutput()
			if err == nil || !strings.Contains(string(out), tc.words) {
				t.Errorf("error %v, output %q; want an error that names %s", err, out, tc.words)
			}
		})
	}
}

func logLines(n *node.Node, path string) int { return strings.Count(node.ReadFile(n.T(), path), "\n") }

// TestRetriesJoinTheAttemptUnderWay calls RunPodSandbox many times at once for one pod.
func TestRetriesJoinTheAttemptUnderWay(t *testing.T) {
	n := node.Start(t, node.Options{})
	warm(t, n)
	leavesNothing(t, n)
	sandbox := n.Sandbox("impatient")
	type answer struct {
		id  string
		err error
	}
	answers := make(chan answer)
	const callers = 8
	for range callers {
		go func() {
			r, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandbox})
			answers <- answer{r.GetPodSandboxId(), err}
		}()
	}
	ids := map[string]int{}
	for range callers {
		select {
		case a := <-answers:
			if a.err != nil {
				t.Errorf("a retry got %v", a.err)
			}
			ids[a.id]++
		case <-time.After(2 * time.Minute):
			t.Fatal("a retry hangs")
		}
	}
	if len(ids) != 1 {
		t.Fatalf("%d callers got %s", callers, fmt.Sprint(ids))
	}
	for id := range ids {
		n.RemovePod(id)
	}
}

// After a reboot pods are still listed, as what they are now, and can be removed; their addresses and
// directories are given back.
func TestAfterAReboot(t *testing.T) {
	for _, env := range []struct {
		name    string
		options node.Options
	}{{"builtin network", node.Options{}}, {"CNI", node.Options{Network: "cni"}}} {
		t.Run(env.name, func(t *testing.T) {
			n := node.Start(t, env.options)
			ref := warm(t, n)
			pod, container := n.Launch(n.Sandbox("gone"), node.Container("main", ref, "sleep", "100000"))
			n.Reboot()
			n.Restart()
			if p := n.Pod(pod); p.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("the pod is %v", p.State)
			}
			if s := n.Ended(container); s.ExitCode != 255 || s.Reason != "Unknown" {
				t.Errorf("exit code %d, reason %s; want 255, Unknown", s.ExitCode, s.Reason)
			}
			// The next boot's pod makes what a node keeps; after both are removed there is no more than that.
			again, _ := n.Launch(n.Sandbox("new"), node.Container("main", ref, "sleep", "100000"))
			n.RemovePod(again)
			before, err := leftovers.Take(t.Context(), n.Scope())
			if err != nil {
				t.Fatal(err)
			}
			n.RemovePod(pod)
			nothingLeft(t, n, before)
			for _, line := range before["file"] {
				if strings.Contains(line, pod) || strings.Contains(line, container) {
					if _, err = os.Lstat(line); err == nil {
						t.Errorf("left behind: %s", line)
					}
				}
			}
		})
	}
}
