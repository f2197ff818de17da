package e2e_test

import (
	"path/filepath"
	"strings"
	"testing"

	"gantry/test/node"
)

// TestExamples runs every pod of examples/ as its comment says and removes it.
func TestExamples(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.MirrorDockerHub()
	warm(t, n)
	n.Pull("docker.io/library/busybox:1.36")
	files, err := filepath.Glob("../../examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("examples: %v, %v", files, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		t.Run(name, func(t *testing.T) {
			n := n.For(t)
			leavesNothing(t, n)
			run := []string{"run", "--dir", filepath.Join(n.Root, "pods"), "-f", file}
			if name == "job" {
				contains(t, "output", n.Gantry(append(run, "--rm", "--wait")...), "1\n2\n3\n")
				return
			}
			n.Gantry(run...)
			contains(t, "pods", n.Gantry("pods"), name)
			for _, id := range strings.Fields(n.Gantry("ps", "--quiet")) {
				n.Gantry("exec", id, "true")
			}
			n.Gantry("rm", "--force", name)
		})
	}
}

func TestExampleConfiguration(t *testing.T) {
	n := node.Prepare(t, node.Options{})
	contains(t, "config", n.Gantry("config", "--config", "../../examples/config.toml"), "mode = 'builtin'")
}
