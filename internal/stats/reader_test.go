package stats_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/cgroup"
	"gantry/internal/pod"
	"gantry/internal/stats"
)

// layers is what is known of one writable layer.
type layers struct {
	usage *pod.Usage
	err   error
}

func (l layers) LayerUsage(string) (*pod.Usage, error) { return l.usage, l.err }

func reader(t *testing.T, l stats.Layers) *stats.Reader {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{
		"cgroup.controllers": "cpu memory pids\n", "p/c/cpu.stat": "usage_usec 5\nuser_usec 3\n", "p/c/pids.current": "2\n",
		"p/c/pids.max": "50\n", "p/c/cgroup.procs": "", "p/c/below/cgroup.procs": "0\n",
	} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	cgroups, err := cgroup.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return stats.New(cgroups, l)
}

func TestContainerLeavesOutWhatCannotBeHad(t *testing.T) {
	at := time.Unix(7, 0)
	for rule, c := range map[string]struct {
		layers stats.Layers
		want   bool
	}{
		"a layer that is known":              {layers{usage: &pod.Usage{Mountpoint: "/", At: at, Bytes: 9}}, true},
		"a layer that is not measured yet":   {layers{}, false},
		"a layer that cannot be measured":    {layers{err: errors.New("no such disk")}, false},
		"a store that knows nothing of them": {nil, false},
	} {
		t.Run(rule, func(t *testing.T) {
			r := reader(t, c.layers)
			container := &pod.Container{CgroupPath: "/p/c"}
			s, err := r.Container(container)
			if err != nil || s.CPUUsage != 5*time.Microsecond || s.CPURate != nil || (s.Layer != nil) != c.want {
				t.Errorf("%+v, %v", s, err)
			}
			m, err := r.ContainerMetrics(container)
			if err != nil || m.CPUUser != 3*time.Microsecond || m.Tasks != nil || (m.Filesystem != nil) != c.want {
				t.Errorf("%+v, %v", m, err)
			}
		})
	}
}

func TestWhatHasNoCgroup(t *testing.T) {
	r := reader(t, nil)
	for path, is := range map[string]func(error) bool{"": errdefs.IsNotImplemented, "/p/gone": errdefs.IsNotFound} {
		if _, err := r.Container(&pod.Container{CgroupPath: path}); !is(err) {
			t.Errorf("statistics in %q: %v", path, err)
		}
		if _, err := r.ContainerMetrics(&pod.Container{CgroupPath: path}); !is(err) {
			t.Errorf("metrics in %q: %v", path, err)
		}
	}
	if _, err := r.Cgroup("/p/gone"); !errdefs.IsNotFound(err) {
		t.Errorf("a pod's cgroup that is gone: %v", err)
	}
}
