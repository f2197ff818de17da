// Package cgroup2_test runs pods on a machine as users have it: cgroup v2 alone, systemd as init, and
// gantry as a service of it. `make test-cgroup2` makes that machine and runs these tests inside; they
// change its systemd, cgroups and network, and run nowhere else.
package cgroup2_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"gantry/internal/cgroup"
	"gantry/internal/pod"
	"gantry/test/node"
)

func TestMain(m *testing.M) {
	if os.Getenv("GANTRY_VM") == "" {
		fmt.Fprintln(os.Stderr, "these tests take over the machine they run on: `make test-cgroup2` gives them one")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const (
	unit  = "gantry.service"
	mount = cgroup.DefaultRoot
	state = "/run/gantry"
)

// setup is how a node is configured.
type setup struct {
	driver  cgroup.Driver
	runtime string
}

func (s setup) String() string { return string(s.driver) + " " + s.runtime }

// setups are all that limits and their removal are tried with.
var setups = []setup{
	{cgroup.Cgroupfs, "crun"}, {cgroup.Systemd, "crun"}, {cgroup.Systemd, "runc"}, {cgroup.Cgroupfs, "runc"},
}

// usual is what most nodes have.
var usual = setup{cgroup.Systemd, "crun"}

// serve restarts the service with s and returns its node. The service stays when the test ends.
func (s setup) serve(t *testing.T) *node.Node {
	t.Helper()
	text := fmt.Sprintf("[log]\nlevel = \"debug\"\n[runtime]\ndefault = %q\n[cgroup]\ndriver = %q\n[network]\nmode = \"builtin\"\n", s.runtime, s.driver)
	if s == onDocker {
		text = dockerConfig() + "[log]\nlevel = \"debug\"\n[network]\nmode = \"builtin\"\n"
	}
	if err := os.MkdirAll("/etc/gantry", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/etc/gantry/config.toml", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "systemctl", "restart", unit) // returns when the service said that it is ready
	return node.Attach(t, state, "")
}

// restart restarts the service of a node and waits until the node's calls reach it.
func restart(t *testing.T, n *node.Node) {
	t.Helper()
	run(t, "systemctl", "restart", unit)
	n.Answers()
}

// run runs a command, which must exit 0, and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(context.WithoutCancel(t.Context()), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// podCgroup makes the cgroup of a burstable pod as the kubelet does before it asks for the pod, and
// returns its path, which is also what the kubelet sends as cgroup parent.
func (s setup) podCgroup(t *testing.T, uid string) string {
	t.Helper()
	if s.driver == cgroup.Cgroupfs {
		path := "/kubepods/burstable/pod" + uid
		fs, err := cgroup.Open(mount)
		if err != nil {
			t.Fatal(err)
		}
		if err = fs.Create(path); err != nil {
			t.Fatal(err)
		}
		if err = fs.SetLimits(path, &pod.Resources{CPUShares: 1024, MemoryLimit: 512 << 20}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := fs.RemoveEmpty(path); err != nil {
				t.Errorf("the pod's cgroup: %v", err)
			}
		})
		return path
	}
	slice := "kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice"
	run(t, "systemctl", "start", slice)
	run(t, "systemctl", "set-property", "--runtime", slice, "MemoryMax=512M", "CPUWeight=39")
	t.Cleanup(func() { _ = exec.Command("systemctl", "stop", slice).Run() })
	return "/kubepods.slice/kubepods-burstable.slice/" + slice
}

// containerCgroup is where a container of a pod whose cgroup is parent must be.
func (s setup) containerCgroup(parent, id string) string {
	if s == onDocker {
		return parent + "/docker-" + id + ".scope"
	}
	if s.driver == cgroup.Systemd {
		return parent + "/gantry-" + id + ".scope"
	}
	return parent + "/" + id
}

// processCgroup is where the processes of a container whose cgroup is path are, and its limits: crun
// makes a cgroup below the scope, whose files systemd would write over when it reloads.
func (s setup) processCgroup(path string) string {
	if s.driver == cgroup.Systemd && s.runtime == "crun" {
		return path + "/container"
	}
	return path
}

// file reads a file of a cgroup.
func file(t *testing.T, path, name string) string {
	t.Helper()
	return strings.TrimSpace(node.ReadFile(t, filepath.Join(mount, path, name)))
}

// number reads a number of a cgroup.
func number(t *testing.T, path, name string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(file(t, path, name), 10, 64)
	if err != nil {
		t.Fatalf("%s of %s: %v", name, path, err)
	}
	return n
}

// value reads a value of a file of lines "key value".
func value(t *testing.T, path, name, key string) uint64 {
	t.Helper()
	for line := range strings.Lines(file(t, path, name)) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == key {
			n, err := strconv.ParseUint(fields[1], 10, 64)
			if err != nil {
				t.Fatalf("%s %s of %s: %v", name, key, path, err)
			}
			return n
		}
	}
	t.Fatalf("%s of %s has no %s", name, path, key)
	return 0
}

func contains(t *testing.T, what, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%s: %q lacks %q", what, text, part)
	}
}
