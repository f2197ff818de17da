package docker_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"gantry/internal/crilog"
	"gantry/internal/labdocker"
	"gantry/test/node"
)

// TestKilledServerAndWorkerLoseNoLine kills both while pods on Docker write numbered lines.
func TestKilledServerAndWorkerLoseNoLine(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			d := labdocker.Start(t, labdocker.Options{Version: v, LiveRestore: true})
			n := node.Start(t, node.Options{Flags: []string{"--engine", "docker", "--docker-endpoint", d.Endpoint()}})
			image := n.Pull(node.Busybox(t))
			const writers, lines = 3, 200_000
			pods, logs := map[string]string{}, map[string]string{}
			for i := range writers {
				script := fmt.Sprintf(`i=0; while [ $i -lt 200 ]; do seq $((i*%[1]d+1)) $((i*%[1]d+%[1]d)); i=$((i+1)); sleep 0.02; done; exit 4`, lines/200)
				pod, container := n.Launch(n.Sandbox(fmt.Sprint("writer-", i)), node.Container("main", image, "sh", "-c", script))
				pods[pod], logs[container] = container, n.Container(container).LogPath
			}
			for range 8 {
				<-time.After(time.Duration(rand.IntN(400)) * time.Millisecond) // a random moment
				n.Kill()
				n.KillWorker()
				<-time.After(time.Duration(rand.IntN(200)) * time.Millisecond)
				n.KillWorker()
				n.Restart()
			}
			for container, log := range logs {
				if s := n.Ended(container); s.ExitCode != 4 {
					t.Errorf("exit code %d, want 4: %s", s.ExitCode, s.Message)
				}
				consecutive(t, node.ReadFile(t, log), lines)
			}
			for pod := range pods {
				n.RemovePod(pod)
			}
			if out := d.Docker("ps", "-aq"); out != "" {
				t.Errorf("docker is left with %s", out)
			}
		})
	}
}

// consecutive checks that a log has the numbers from 1 to last, each once, and nothing else.
func consecutive(t *testing.T, log string, last int) {
	t.Helper()
	n, line := 0, ""
	for text := range strings.Lines(log) {
		e, err := crilog.Parse([]byte(text))
		if err != nil || !strings.HasSuffix(text, "\n") {
			t.Fatalf("after line %d: torn entry %.100q: %v", n, text, err)
		}
		if line += string(e.Content); e.Partial {
			continue
		}
		if n++; line != fmt.Sprint(n) {
			t.Fatalf("line %d is %.100q", n, line)
		}
		line = ""
	}
	if n != last {
		t.Errorf("%d lines, want %d", n, last)
	}
}
