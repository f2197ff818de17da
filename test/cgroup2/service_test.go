package cgroup2_test

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cgroup"
	"gantry/test/node"
)

// counts writes a number about five times a second.
const counts = `i=0; while :; do echo "n=$i"; i=$((i+1)); sleep 0.2; done`

// numbers are what counts wrote, in whole lines; none may be missing.
func (l *launched) numbers(t *testing.T) int {
	t.Helper()
	n := 0
	for line := range strings.Lines(l.ReadLog(l.container)) {
		if !strings.HasSuffix(line, "\n") { // it is just being written
			break
		}
		if !strings.HasSuffix(line, fmt.Sprintf(" n=%d\n", n)) {
			t.Fatalf("line %d of the log is %q", n, line)
		}
		n++
	}
	return n
}

// goesOn says that the container is the one from before and still writes.
func (l *launched) goesOn(t *testing.T, before *runtimeapi.ContainerStatus) {
	t.Helper()
	l.Answers()
	after := l.Container(l.container)
	if after.State != runtimeapi.ContainerState_CONTAINER_RUNNING || after.StartedAt != before.StartedAt {
		t.Errorf("the container is %v, started %d, was started %d", after.State, after.StartedAt, before.StartedAt)
	}
	seen := l.numbers(t)
	l.Eventually("the log goes on", func() bool { return l.numbers(t) > seen })
	if out := l.Exec(l.container, "echo", "here"); out != "here\n" {
		t.Errorf("exec: %q", out)
	}
}

// startedAgain waits until systemd has started the service anew, whose main process was the one named.
func (l *launched) startedAgain(t *testing.T, main string) {
	t.Helper()
	l.Eventually("systemd has started it again", func() bool {
		now := run(t, "systemctl", "show", "-P", "MainPID", unit)
		return now != main && now != "0" && run(t, "systemctl", "show", "-P", "ActiveState", unit) == "active"
	})
	l.Answers()
}

// TestServiceRestart restarts and stops the service as administrators do; the keeper and the
// containers are outside its cgroup and go on.
func TestServiceRestart(t *testing.T) {
	for _, s := range setups[:2] {
		t.Run(s.String(), func(t *testing.T) {
			l := s.launch(t, s.serve(t), counts)
			before := l.Container(l.container)
			holder, worker := l.Keeper()
			for _, pid := range []int{holder, worker} {
				if got := strings.TrimSpace(node.ReadFile(t, fmt.Sprintf("/proc/%d/cgroup", pid))); got != "0::/gantry-keeper" {
					t.Errorf("the keeper's process %d is in %s", pid, got)
				}
			}
			main := run(t, "systemctl", "show", "-P", "MainPID", unit)
			inside := run(t, "systemctl", "show", "-P", "ControlGroup", unit)
			l.Eventually("only the main process is in the service's cgroup", func() bool { return file(t, inside, "cgroup.procs") == main })
			run(t, "systemctl", "restart", unit)
			l.goesOn(t, before)
			main = run(t, "systemctl", "show", "-P", "MainPID", unit)
			run(t, "systemctl", "kill", "--signal=KILL", "--kill-whom=all", unit)
			l.startedAgain(t, main)
			l.goesOn(t, before)
			run(t, "systemctl", "daemon-reexec") // returns when systemd hangs up, before it is there again
			l.Eventually("systemd answers again", func() bool {
				out, err := exec.CommandContext(l.Context(), "systemctl", "is-active", unit).Output()
				return err == nil && strings.TrimSpace(string(out)) == "active"
			})
			l.goesOn(t, before)
			if h, w := l.Keeper(); h != holder || w != worker {
				t.Errorf("the keeper is %d and %d, was %d and %d", h, w, holder, worker)
			}
		})
	}
}

// TestEndsWhileTheServiceIsStopped has a container end while nobody serves.
func TestEndsWhileTheServiceIsStopped(t *testing.T) {
	for _, s := range setups[:2] {
		t.Run(s.String(), func(t *testing.T) {
			l := s.launch(t, s.serve(t), "trap 'echo bye; exit 23' TERM; echo ready; while :; do sleep 0.1; done")
			l.Eventually("the container is ready", func() bool { return strings.Contains(l.ReadLog(l.container), "ready") })
			path, pid := l.Container(l.container).LogPath, l.firstProcess(t)
			run(t, "systemctl", "stop", unit)
			node.Terminate(t, pid)
			run(t, "systemctl", "start", unit)
			l.Answers()
			if st := l.Ended(l.container); st.ExitCode != 23 || st.Reason != "Error" {
				t.Errorf("exit code %d, reason %s, want 23, Error", st.ExitCode, st.Reason)
			}
			l.Eventually("the log has its last word", func() bool { return strings.Contains(node.ReadFile(t, path), "bye") })
		})
	}
}

// firstProcess is the first process of the container.
func (l *launched) firstProcess(t *testing.T) int {
	t.Helper()
	first, _, _ := strings.Cut(file(t, l.processCgroup(l.cgroup), "cgroup.procs"), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestKeeperDeaths kills the keeper's worker, then its holder. This machine's kernel tells nobody but
// the parent how a process ended, so what the dead holder had started ends with an unknown code.
func TestKeeperDeaths(t *testing.T) {
	for _, s := range setups[:2] {
		t.Run(s.String(), func(t *testing.T) {
			n := s.serve(t)
			l := s.launch(t, n, counts)
			before := l.Container(l.container)
			holder, worker := l.Keeper()
			if holder == 0 || !l.KillWorker() {
				t.Fatalf("there was no worker: holder %d, worker %d", holder, worker)
			}
			l.Eventually("there is another worker", func() bool { _, w := l.Keeper(); return w > 0 && w != worker })
			l.goesOn(t, before)
			if err := syscall.Kill(holder, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			l.Eventually("there is another holder", func() bool { h, w := l.Keeper(); return h > 0 && w > 0 && h != holder })
			l.Eventually("the server has found it", func() bool {
				r, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: l.container, Cmd: []string{"true"}, Timeout: 30})
				return err == nil && r.ExitCode == 0
			})
			l.goesOn(t, before)
			l.StopContainer(l.container, 0)
			if st := l.Ended(l.container); kernelTellsExits() && st.ExitCode != 137 || !kernelTellsExits() && (st.ExitCode != 255 || st.Reason != "Unknown") {
				t.Errorf("exit code %d, reason %s", st.ExitCode, st.Reason)
			}
			h, w := l.Keeper()
			for _, pid := range []int{h, w} {
				if got := strings.TrimSpace(node.ReadFile(t, fmt.Sprintf("/proc/%d/cgroup", pid))); got != "0::/gantry-keeper" {
					t.Errorf("the new keeper's process %d is in %s", pid, got)
				}
			}
		})
	}
}

// kernelTellsExits says whether a pidfd tells how a process ended: since Linux 6.15.
func kernelTellsExits() bool {
	var major, minor int
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	_, err := fmt.Sscanf(string(release), "%d.%d", &major, &minor)
	return err == nil && (major > 6 || major == 6 && minor >= 15)
}

// TestNetwork reaches a pod by its address and by a host port, from the node and from another pod,
// over the builtin network.
func TestNetwork(t *testing.T) {
	s := setup{cgroup.Systemd, "crun"}
	n := s.serve(t)
	l := s.launch(t, n, "mkdir /www; echo a page > /www/index.html; exec busybox httpd -f -p 8080 -h /www", func(p *runtimeapi.PodSandboxConfig, _ *runtimeapi.ContainerConfig) {
		p.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 8080, HostPort: 18080}}
	})
	ip := l.Pod(l.pod).Network.Ip
	l.Eventually("the pod answers", func() bool {
		r, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: l.container, Cmd: []string{"wget", "-q", "-O-", "http://127.0.0.1:8080/"}, Timeout: 30})
		return err == nil && r.ExitCode == 0
	})
	for what, url := range map[string]string{"by its address": "http://" + ip + ":8080/", "by the host port": "http://127.0.0.1:18080/"} {
		contains(t, what, run(t, "busybox", "wget", "-q", "-O-", url), "a page")
	}
	ref := node.Busybox(t)
	sandbox := n.Sandbox("client")
	sandbox.Linux.CgroupParent = ""
	client, container := n.Launch(sandbox, node.Container("main", ref, "sleep", "100000"))
	defer n.RemovePod(client)
	contains(t, "from another pod", n.Exec(container, "wget", "-q", "-O-", "http://"+ip+":8080/"), "a page")
	contains(t, "rules", run(t, "nft", "list", "ruleset"), "18080")
}
