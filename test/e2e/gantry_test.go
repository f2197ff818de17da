package e2e_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gantry/test/node"
)

func TestCommandLineFromPullToRemoval(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	contains(t, "pull", n.Gantry("pull", ref), "sha256:")
	contains(t, "images", n.Gantry("images"), "busybox")
	leavesNothing(t, n)
	manifest := writeManifest(n, "web", ref, `["sh", "-c", "echo hello; exec sleep 100000"]`, "")
	n.Gantry("run", "--dir", n.Root+"/pods", "-f", manifest)
	contains(t, "pods", n.Gantry("pods"), "web")
	contains(t, "ps", n.Gantry("ps"), "main")
	n.Eventually("the log has its line", func() bool { return strings.Contains(n.Gantry("logs", "web/main"), "hello") })
	contains(t, "exec", n.Gantry("exec", "web/main", "echo", "hi"), "hi")
	seen := typeInto(t, n.GantryCommand(n.Context(), "exec", "-it", "web/main", "sh"), showSize)
	contains(t, "exec -it", seen, "size=33 77")
	contains(t, "inspect", n.Gantry("inspect", "web"), `"web"`)
	n.Gantry("stop", "web")
	n.Gantry("rm", "web")
	if out := n.Gantry("pods"); strings.Contains(out, "web") {
		t.Errorf("the removed pod is still listed:\n%s", out)
	}
}

func TestRunWaitsAndPassesTheExitCodeOn(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	leavesNothing(t, n)
	manifest := writeManifest(n, "job", ref, `["sh", "-c", "echo done; exit 6"]`, "restartPolicy: Never")
	out, err := n.GantryCommand(n.Context(), "run", "--rm", "--wait", "--dir", n.Root+"/pods", "-f", manifest).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 6 {
		t.Errorf("run --wait: %v, want exit code 6", err)
	}
	contains(t, "run --wait streams the log", string(out), "done")
}

func TestExecPassesTheExitCodeOn(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	pod, container := n.Launch(n.Sandbox("codes"), node.Container("main", ref, "sleep", "100000"))
	t.Cleanup(func() { n.RemovePod(pod) })
	err := n.GantryCommand(n.Context(), "exec", container, "sh", "-c", "exit 7").Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exec: %v, want exit code 7", err)
	}
}

func TestCommandsThatHaveNoServer(t *testing.T) {
	n := node.Prepare(t, node.Options{})
	out, err := n.GantryCommand(n.Context(), "ps").CombinedOutput()
	if err == nil || !strings.Contains(string(out), n.Endpoint()) {
		t.Errorf("error %v, output %q; want an error that names the endpoint", err, out)
	}
}

func writeManifest(n *node.Node, name, image, command, more string) string {
	n.T().Helper()
	text := `apiVersion: v1
kind: Pod
metadata:
  name: ` + name + `
spec:
  terminationGracePeriodSeconds: 1
  ` + more + `
  containers:
  - name: main
    image: ` + image + `
    command: ` + command + `
`
	path := filepath.Join(n.Root, name+".yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		n.T().Fatal(err)
	}
	return path
}
