package docker_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gantry/internal/engine/enginetest"
	"gantry/internal/labdocker"
	"gantry/internal/pod"
)

func TestContract(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			s := newStation(t, labdocker.Options{Version: v})
			enginetest.Run(t, func(*testing.T) enginetest.Harness {
				return enginetest.Harness{
					Engine: s, Image: s.image, Commands: enginetest.Shell(), Patience: patience,
					Sandbox: func(spec *pod.SandboxSpec) { spec.CgroupParent = s.dockerd.Cgroup },
				}
			})
			var left []string // what is behind Docker may take its time with a removed container's cgroup
			if !within(t, func() bool { left = s.leftovers(t); return len(left) == 0 }) {
				t.Errorf("left behind %v", left)
			}
		})
	}
}

// leftovers lists what the engine may not leave behind.
func (s *station) leftovers(t *testing.T) []string {
	t.Helper()
	left := strings.Fields(s.dockerd.Docker("ps", "-aq"))
	left = append(left, strings.Fields(s.dockerd.Docker("volume", "ls", "-q"))...)
	pins, err := filepath.Glob(filepath.Join(s.netNS, "*"))
	if err != nil {
		t.Fatal(err)
	}
	left = append(left, pins...)
	cgroups, _ := filepath.Glob("/sys/fs/cgroup/*" + s.dockerd.Cgroup + "/*")
	for _, c := range cgroups {
		if st, err := os.Stat(c); err == nil && st.IsDir() {
			left = append(left, c)
		}
	}
	return left
}
