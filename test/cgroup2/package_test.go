package cgroup2_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cgroup"
	"gantry/test/node"
)

// The packages, and the versions that they are.
const (
	older = "0.1.0"
	newer = "0.2.0"
)

func deb(version string) string { return "/payload/gantry_" + version + "_amd64.deb" }

// packaged is what the package's own configuration sets up, with the builtin network.
var packaged = setup{cgroup.Systemd, "crun"}

// useBuiltin does what docs/install.md says about a node without CNI plugins.
func useBuiltin(t *testing.T) *node.Node {
	t.Helper()
	run(t, "sed", "-i", "s/^#mode = .*/mode = 'builtin'/", "/etc/gantry/config.toml")
	run(t, "systemctl", "restart", "gantry")
	return node.Attach(t, state, "")
}

// serves says that version serves, by what the running server says of itself.
func serves(t *testing.T, version string) {
	t.Helper()
	if got := run(t, "systemctl", "is-active", "gantry"); got != "active" {
		t.Errorf("the service is %s", got)
	}
	contains(t, "crictl version", run(t, node.Tool(t, "crictl"), "--timeout", "10m", "version"), "RuntimeVersion:  "+version)
}

// TestPackage installs the package on a machine that never had it, runs a pod, and does to the node what
// happens in its life: restarts, crashes, an upgrade, a removal that is taken back. The pod goes on through
// all of it and loses no line of its log.
func TestPackage(t *testing.T) {
	run(t, "apt-get", "install", "-y", "--no-install-recommends", deb(older))
	serves(t, older)
	if got := run(t, "systemctl", "is-enabled", "gantry"); got != "enabled" {
		t.Errorf("the service is %s", got)
	}
	contains(t, "gantry config", run(t, "gantry", "config"), "driver = 'systemd'")
	n := useBuiltin(t)
	contains(t, "crictl info", run(t, node.Tool(t, "crictl"), "--timeout", "10m", "info"), "RuntimeReady")
	run(t, "gantry", "doctor")
	if out := run(t, "sh", "-c", "bash -c '. /usr/share/bash-completion/completions/gantry' && zcat /usr/share/man/man1/gantry-serve.1.gz"); !strings.Contains(out, "GANTRY") {
		t.Errorf("man page: %q", out)
	}

	l := packaged.launch(t, n, counts)
	before := l.Container(l.container)
	for what, step := range map[string]func(*testing.T, *launched){"restart": restarts, "crashes": crashes} {
		t.Run(what, func(t *testing.T) {
			step(t, l)
			l.goesOn(t, before)
		})
	}
	t.Run("upgrade", func(t *testing.T) {
		holder, worker := l.Keeper()
		run(t, "dpkg", "-i", deb(newer))
		serves(t, newer)
		l.Answers()
		l.Eventually("the keeper is the new one", func() bool {
			h, w := l.Keeper()
			program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", h))
			return err == nil && h == holder && w > 0 && w != worker && program == "/usr/bin/gantry-keeper"
		})
		contains(t, "the edited configuration", node.ReadFile(t, "/etc/gantry/config.toml"), "\nmode = 'builtin'")
		l.goesOn(t, before)
	})
	t.Run("removed and installed again", func(t *testing.T) {
		contains(t, "dpkg --remove", run(t, "dpkg", "--remove", "gantry"), "pods that are left as they are: 1")
		if out, err := exec.CommandContext(t.Context(), "systemctl", "is-active", "gantry").Output(); err == nil {
			t.Errorf("the service of a package that was removed is %s", out)
		}
		lines := l.lines(t, before)
		l.Eventually("the container goes on writing", func() bool { return l.lines(t, before) > lines })
		run(t, "dpkg", "-i", deb(newer))
		serves(t, newer)
		l.goesOn(t, before)
	})
}

// lines of the container's log, read without a server.
func (l *launched) lines(t *testing.T, c *runtimeapi.ContainerStatus) int {
	t.Helper()
	return strings.Count(node.ReadFile(t, c.LogPath), "\n")
}

func restarts(t *testing.T, _ *launched) {
	run(t, "systemctl", "restart", "gantry")
	run(t, "systemctl", "reload", "gantry")
}

// crashes kills server and worker more often than systemd allows a service by default.
func crashes(t *testing.T, l *launched) {
	for range 7 {
		main := run(t, "systemctl", "show", "-P", "MainPID", unit)
		l.KillWorker()
		run(t, "systemctl", "kill", "--signal=KILL", "--kill-whom=main", unit)
		l.startedAgain(t, main)
	}
}

// TestPackagePowerCut has pods running when the machine loses its power. It does not return.
func TestPackagePowerCut(t *testing.T) {
	n := node.Attach(t, state, "")
	n.Pull(node.Busybox(t))
	for _, name := range []string{"first", "second"} {
		sandbox := n.Sandbox(name)
		sandbox.Linux.CgroupParent = ""
		sandbox.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 8080, HostPort: int32(18080 + len(name))}}
		n.Launch(sandbox, node.Container("main", node.Busybox(t), "sleep", "100000"))
	}
	run(t, "sync") // pods' records need no power cut to be lost: what is tried here is what is left of them
	fmt.Println("\nvm: power cut")
	select {}
}

// TestPackageAfterThePowerCut finds the service started with the machine, the pods of before ended and
// their network given back; then the node is cleared and the package purged.
func TestPackageAfterThePowerCut(t *testing.T) {
	n := node.Attach(t, state, "")
	n.Eventually("the service, which starts with the machine as this test does, is active", func() bool {
		out, err := exec.CommandContext(t.Context(), "systemctl", "is-active", "gantry").Output()
		return err == nil && strings.TrimSpace(string(out)) == "active"
	})
	serves(t, newer)
	pods, err := n.Runtime.ListPodSandbox(n.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(pods.Items) != 2 {
		t.Fatalf("pods of before: %v, %v; want two", pods, err)
	}
	for _, p := range pods.Items {
		if p.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("pod %s of before the cut is %v", p.Metadata.Name, p.State)
		}
	}
	containers, err := n.Runtime.ListContainers(n.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers.Containers {
		if c.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("container %s of before the cut is %v", c.Metadata.Name, c.State)
		}
	}
	contains(t, "gantry fsck", run(t, "gantry", "fsck", "--alone"), "nothing")
	l := packaged.launch(t, n, counts, func(p *runtimeapi.PodSandboxConfig, _ *runtimeapi.ContainerConfig) {
		p.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 8080, HostPort: 18085}} // one of before
	})
	before := l.Container(l.container)

	t.Run("purged while a container runs", func(t *testing.T) {
		run(t, "gantry", "rm", pods.Items[0].Id, pods.Items[1].Id)
		contains(t, "dpkg --purge", run(t, "dpkg", "--purge", "gantry"), "containers still run")
		lines := l.lines(t, before)
		l.Eventually("the container goes on writing", func() bool { return l.lines(t, before) > lines })
		run(t, "dpkg", "-i", deb(newer))
		useBuiltin(t)
		l.goesOn(t, before)
	})
}

// TestPackagePurge runs last: it removes every pod and the package, and finds nothing of either.
func TestPackagePurge(t *testing.T) {
	run(t, "gantry", "rm", "--all", "--force")
	run(t, "systemctl", "restart", "gantry") // takes away the bridge, which no pod needs any more
	run(t, "dpkg", "--purge", "gantry")
	for what, command := range map[string]string{
		"files":              "find /etc /run /usr /var/lib -xdev -name '*gantry*' -not -path '/var/lib/dpkg/*' -not -path '/etc/systemd/system/payload*' -not -name modules-load.d -not -path '/etc/modules-load.d/*' -not -path '/etc/sysctl.d/*'",
		"crictl.yaml":        "ls /etc/crictl.yaml 2>/dev/null || true",
		"processes":          "pgrep -a gantry || true",
		"network namespaces": "ip netns",
		"links":              "ip -br link show type bridge; ip -br link show type veth",
		"rules":              "nft list ruleset | grep -i gantry || true",
		"mounts":             "grep gantry /proc/self/mountinfo || true",
		"cgroups":            "find /sys/fs/cgroup -name '*gantry*'",
		"units":              "systemctl list-units --all --plain --no-legend '*gantry*'",
	} {
		if left := run(t, "sh", "-c", command); left != "" {
			t.Errorf("%s left:\n%s", what, left)
		}
	}
	if _, err := os.Stat(filepath.Join("/var/lib", "gantry")); err == nil {
		t.Error("the images are left")
	}
}
