package docker_test

import (
	"bufio"
	"os/exec"
	"testing"

	"gantry/internal/engine/docker"
)

// A process that is killed while it forks leaves no child: each has the writing end of a pipe, which therefore ends.
func TestKillTreeLeavesNoFork(t *testing.T) {
	for range 30 {
		forks := exec.CommandContext(t.Context(), "/bin/sh", "-c", "while :; do sleep 1000 & echo; done")
		out, err := forks.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err = forks.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		if _, err = lines.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		docker.KillTree(forks.Process.Pid)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for err == nil {
				_, err = lines.ReadString('\n')
			}
		}()
		if !within(t, func() bool {
			select {
			case <-ended:
				return true
			default:
				return false
			}
		}) {
			t.Fatal("a child holds the pipe")
		}
		_ = forks.Wait()
	}
}
