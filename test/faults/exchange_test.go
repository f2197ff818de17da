package faults_test

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/leftovers"
	"gantry/test/node"
)

// TestExchange exchanges both binaries under running pods: from an older version to this one, and back, and
// here again. The older one is in the directory GANTRY_OLD_BIN (`make exchange OLD=…` builds it), else it is this one.
func TestExchange(t *testing.T) {
	now := filepath.Dir(node.Binary(t, "gantry"))
	old := cmp.Or(os.Getenv("GANTRY_OLD_BIN"), now)
	bin := t.TempDir()
	w := &world{n: node.Prepare(t, node.Options{Runtime: "crun", Bin: bin}), t: t}
	w.install(old, bin)
	w.n.Restart()
	w.image = w.n.Pull(node.Busybox(t))
	w.warmUpQuietly()
	before, err := leftovers.Take(t.Context(), w.n.Scope())
	if err != nil {
		t.Fatal(err)
	}
	before["process"] = append(before["process"], "gantry-keeper --state "+filepath.Join(w.n.State, "keeper")+" --cgroup /gantry-keeper --resume")

	all := []*resident{w.launch("lasting"), w.launchTerminal("terminal")}
	var ended []*resident
	for i, version := range []string{now, old, now} {
		ended = append(ended, w.ended(fmt.Sprintf("ended-%d", i)))
		w.exchange(version, bin, func() {
			for _, r := range all {
				w.goesOn(r)
			}
			for _, r := range ended {
				w.exitIs(r, 7)
			}
			w.othersAreNotDelayed()
		})
		all = append(all, w.launch(fmt.Sprintf("later-%d", i)))
	}
	for _, r := range slices.Concat(all, ended) {
		w.n.RemovePod(r.pod)
	}
	left, err := leftovers.Settle(w.n.Context(), w.n.Scope(), before, leftovers.Patience)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range left {
		t.Errorf("left behind: %s", line)
	}
}

// ended is a pod whose container has just ended with 7.
func (w *world) ended(name string) *resident {
	w.t.Helper()
	r := w.launch(name)
	node.Terminate(w.t, w.n.ContainerPid("line $i end", "NAME="+name))
	return r
}

// install puts the binaries of a version in the place of those that are there.
func (w *world) install(from, to string) {
	w.t.Helper()
	for _, name := range []string{"gantry", "gantry-keeper"} {
		in, err := os.Open(filepath.Join(from, name))
		if err != nil {
			w.t.Fatal(err)
		}
		path := filepath.Join(to, name)
		out, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err = io.Copy(out, in); err != nil {
			w.t.Fatal(err)
		}
		for _, err := range []error{in.Close(), out.Close(), os.Rename(path+".new", path)} {
			if err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// exchange does what docs/upgrade.md says, with check after the keeper's turn, which has the other server still, and
// after the server's.
func (w *world) exchange(version, bin string, check func()) {
	w.t.Helper()
	w.install(version, bin)
	holder, worker := w.n.Keeper()
	if holder == 0 || worker == 0 {
		w.t.Fatalf("holder %d, worker %d", holder, worker)
	}
	if err := syscall.Kill(holder, syscall.SIGUSR2); err != nil {
		w.t.Fatal(err)
	}
	w.n.Eventually("another worker", func() bool { _, now := w.n.Keeper(); return now > 0 && now != worker })
	if now, _ := w.n.Keeper(); now != holder {
		w.t.Errorf("holder %d became %d", holder, now)
	}
	check()
	w.n.Stop()
	w.n.Restart()
	v, err := w.n.Runtime.Version(w.n.Context(), &runtimeapi.VersionRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Logf("server %s, keeper from %s", v.RuntimeVersion, version)
	check()
}
