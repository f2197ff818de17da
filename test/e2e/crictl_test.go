package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

// server says hello on both streams and serves a page on port 8080.
const server = `echo hello out; echo hello err >&2; mkdir -p /tmp/www; echo a page >/tmp/www/index.html; ` +
	`httpd -p 8080 -h /tmp/www; exec sleep 100000`

func TestCrictlFromPullToRemoval(t *testing.T) {
	for _, env := range environments {
		t.Run(env.name, func(t *testing.T) {
			n := node.Start(t, env.options)
			warm(t, n)
			life(t, n, func(s *runtimeapi.PodSandboxConfig) *runtimeapi.PodSandboxConfig { return s })
		})
	}
	t.Run("host network", func(t *testing.T) {
		n := node.Start(t, node.Options{})
		warm(t, n)
		life(t, n, node.HostNetwork)
	})
}

// life is a pod's life as an operator types it.
func life(t *testing.T, n *node.Node, network func(*runtimeapi.PodSandboxConfig) *runtimeapi.PodSandboxConfig) {
	ref := node.Busybox(t)
	sandbox := network(n.Sandbox("web"))
	config := node.Container("server", ref, "sh", "-c", server)
	config.Linux.SecurityContext.NamespaceOptions = sandbox.Linux.SecurityContext.NamespaceOptions
	podFile, containerFile := n.WriteJSON("pod.json", sandbox), n.WriteJSON("container.json", config)

	n.Crictl("pull", ref)
	leavesNothing(t, n)
	pod := line(n.Crictl("runp", podFile))
	container := line(n.Crictl("create", pod, containerFile, podFile))
	contains(t, "ps -a", n.Crictl("ps", "-a", "--state", "Created", "-q"), container)
	n.Crictl("start", container)
	contains(t, "images", n.Crictl("images"), "busybox")
	contains(t, "pods", n.Crictl("pods", "-q", "--no-trunc"), pod)
	contains(t, "ps", n.Crictl("ps", "-q", "--no-trunc"), container)
	contains(t, "inspectp", n.Crictl("inspectp", pod), `"state": "SANDBOX_READY"`)
	contains(t, "inspect", n.Crictl("inspect", container), `"state": "CONTAINER_RUNNING"`)
	n.Eventually("both streams are in the log", func() bool {
		out, _ := n.CrictlCommand(n.Context(), "logs", container).CombinedOutput()
		return strings.Contains(string(out), "hello out") && strings.Contains(string(out), "hello err")
	})

	awaitPage(n, container)
	contains(t, "exec --sync", n.Crictl("exec", "--sync", container, "echo", "one"), "one")
	contains(t, "exec", n.Crictl("exec", container, "echo", "two"), "two")
	execOnTerminal(t, n, container)
	forwardPort(t, n, pod)
	contains(t, "stats", n.Crictl("stats", "-o", "json", container), container)

	n.Crictl("stop", "--timeout", "1", container)
	contains(t, "ps -a", n.Crictl("ps", "-a", "--state", "Exited", "-q", "--no-trunc"), container)
	n.Crictl("rm", container)
	n.Crictl("stopp", pod)
	contains(t, "stopped pod", n.Crictl("inspectp", pod), `"state": "SANDBOX_NOTREADY"`)
	n.Crictl("rmp", pod)
	if out := n.Crictl("pods", "-q", "--no-trunc"); strings.Contains(out, pod) {
		t.Errorf("the removed pod is still listed: %s", out)
	}
}

func TestCrictlRemovesAnImage(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := node.Busybox(t)
	n.Crictl("pull", ref)
	n.Crictl("rmi", ref)
	if out := n.Crictl("images", "-q"); strings.TrimSpace(out) != "" {
		t.Errorf("images after removal: %s", out)
	}
}

func TestCrictlAttachesToStdin(t *testing.T) {
	for _, env := range environments {
		t.Run(env.name, func(t *testing.T) {
			n := node.Start(t, env.options)
			ref := warm(t, n)
			leavesNothing(t, n)
			config := node.Container("reader", ref, "sh", "-c", `while read word; do echo "got $word"; done; exit 4`)
			config.Stdin, config.StdinOnce = true, true
			pod, container := n.Launch(n.Sandbox("reader"), config)
			converse(t, n.CrictlCommand(n.Context(), "attach", "-i", container))
			if status := n.Ended(container); status.ExitCode != 4 {
				t.Errorf("exit code %d after stdin was closed, want 4", status.ExitCode)
			}
			n.RemovePod(pod)
		})
	}
}

// converse says words, hears the answers and closes stdin.
func converse(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	for _, word := range []string{"one", "two"} {
		if _, err = io.WriteString(stdin, word+"\n"); err != nil {
			t.Fatal(err)
		}
		if !lines.Scan() || lines.Text() != "got "+word {
			t.Fatalf("answer %q, want %q", lines.Text(), "got "+word)
		}
	}
	stdin.Close()
	if err = cmd.Wait(); err != nil {
		t.Errorf("attach: %v", err)
	}
}

func TestCrictlAttachesToATerminal(t *testing.T) {
	for _, env := range environments[:2] {
		t.Run(env.name, func(t *testing.T) {
			n := node.Start(t, env.options)
			ref := warm(t, n)
			leavesNothing(t, n)
			config := node.Container("shell", ref, "sh")
			config.Stdin, config.Tty = true, true
			pod, container := n.Launch(n.Sandbox("shell"), config)
			cmd := n.CrictlCommand(n.Context(), "attach", "-it", container)
			terminal := node.StartOnTerminal(t, cmd, 33, 77)
			// The terminal's size arrives when it arrives.
			if _, err := io.WriteString(terminal, "until stty size | grep '^33 77'; do sleep 0.1; done; exit 5\n"); err != nil {
				t.Fatal(err)
			}
			seen, _ := io.ReadAll(terminal) // ends with EIO, as terminals do
			if err := cmd.Wait(); err != nil {
				t.Errorf("attach -it: %v", err)
			}
			if !strings.Contains(string(seen), "\n33 77\r\n") {
				t.Errorf("attach -it shows %q", seen)
			}
			if status := n.Ended(container); status.ExitCode != 5 {
				t.Errorf("exit code %d, want 5", status.ExitCode)
			}
			n.RemovePod(pod)
		})
	}
}

func TestCrictlFollowsALog(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	pod, container := n.Launch(n.Sandbox("talker"), node.Container("talker", ref, "sh", "-c",
		`i=0; while [ $i -lt 5 ]; do echo "word $i"; i=$((i+1)); sleep 0.1; done`))
	t.Cleanup(func() { n.RemovePod(pod) })
	out := n.Crictl("logs", "-f", container)
	if want := "word 0\nword 1\nword 2\nword 3\nword 4\n"; out != want {
		t.Errorf("followed log %q, want %q", out, want)
	}
}

// execOnTerminal types into a shell in the container and reads what a person would see.
func execOnTerminal(t *testing.T, n *node.Node, container string) {
	t.Helper()
	cmd := n.CrictlCommand(n.Context(), "exec", "-it", container, "sh")
	seen := typeInto(t, cmd, "echo term=$(tty)\n"+showSize)
	if !regexp.MustCompile(`term=/dev/pts/\d+`).MatchString(seen) || !strings.Contains(seen, "size=33 77") {
		t.Errorf("exec -it shows %q, want a terminal of 33 rows and 77 columns", seen)
	}
}

// showSize prints a terminal's size, once it is the client's, and ends a shell: the size arrives when it arrives.
const showSize = "until stty size | grep -q '^33 77'; do sleep 0.1; done; echo size=$(stty size); exit 0\n"

// typeInto runs cmd on a terminal of 33 rows and 77 columns and types keys once it prompts.
func typeInto(t *testing.T, cmd *exec.Cmd, keys string) (seen string) {
	t.Helper()
	terminal := node.StartOnTerminal(t, cmd, 33, 77)
	var all bytes.Buffer
	buf := make([]byte, 4096)
	typed := false
	for {
		k, err := terminal.Read(buf) // EIO once the last process on the terminal has ended
		all.Write(buf[:k])
		if err != nil {
			break
		}
		if !typed && strings.ContainsAny(all.String(), "#$") {
			typed = true
			if _, err = io.WriteString(terminal, keys); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, &all)
	}
	return all.String()
}

// forwardPort reads the pod's page through crictl port-forward.
func forwardPort(t *testing.T, n *node.Node, args ...string) {
	t.Helper()
	ctx, cancel := context.WithCancel(n.Context())
	cmd := n.CrictlCommand(ctx, append(append([]string{"port-forward"}, args...), "0:8080")...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // it was told to end
	}()
	words := bufio.NewScanner(stdout)
	address := regexp.MustCompile(`127\.0\.0\.1:(\d+)`)
	for words.Scan() {
		if found := address.FindString(words.Text()); found != "" {
			contains(t, "the page through port-forward", get(t, "http://"+found+"/"), "a page")
			return
		}
	}
	t.Errorf("port-forward said no address")
}

func get(t *testing.T, url string) string {
	t.Helper()
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get(url)
	if err != nil {
		t.Errorf("get %s: %v", url, err)
		return ""
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Errorf("get %s: %v", url, err)
	}
	return string(body)
}

func contains(t *testing.T, what, text, want string) {
	t.Helper()
	if !strings.Contains(text, want) {
		t.Errorf("%s: %q is not in:\n%s", what, want, text)
	}
}

func line(s string) string { return strings.TrimSpace(s) }
