// Package e2e drives real servers, on real runtimes and networks, the way operators do: with crictl,
// with gantry's own command line and with CRI clients.
package e2e_test

import (
	"testing"

	"gantry/internal/lab"
	"gantry/test/leftovers"
	"gantry/test/node"
)

func TestMain(m *testing.M) { lab.Main(m) }

// environments are the combinations that every behaviour a user sees is tried on.
var environments = []struct {
	name    string
	options node.Options
}{
	{"crun, builtin network", node.Options{Runtime: "crun", Network: "builtin"}},
	{"runc, builtin network", node.Options{Runtime: "runc", Network: "builtin"}},
	{"crun, CNI", node.Options{Runtime: "crun", Network: "cni"}},
	{"runc, CNI", node.Options{Runtime: "runc", Network: "cni"}},
}

// opposites are two environments that have nothing in common, for what takes long.
var opposites = []int{0, len(environments) - 1}

// leavesNothing fails the test if it ends with more on the machine than there is now.
func leavesNothing(t *testing.T, n *node.Node) {
	t.Helper()
	before, err := leftovers.Take(t.Context(), n.Scope())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() { // a test that stopped half way did not come to its removals
			nothingLeft(t, n, before)
		}
	})
}

func nothingLeft(t *testing.T, n *node.Node, before leftovers.Snapshot) {
	t.Helper()
	// The test's own context is over when clean-ups run.
	left, err := leftovers.Settle(n.Context(), n.Scope(), before, leftovers.Patience)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range left {
		t.Errorf("left behind: %s", line)
	}
}

// warm runs a pod once and removes it, so that what a node makes with its first pod and keeps (a
// bridge, firewall tables, directories) does not count as left behind. It returns the image it pulled.
func warm(t *testing.T, n *node.Node) string {
	t.Helper()
	ref := node.Busybox(t)
	id := n.Pull(ref)
	pod, _ := n.Launch(n.Sandbox("warm"), node.Container("warm", id, "true"))
	n.RemovePod(pod)
	return ref
}
