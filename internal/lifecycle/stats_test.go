package lifecycle_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/lifecycle"
	"gantry/internal/pod"
)

// meter is a lifecycle.Meter in memory: what each cgroup has used.
type meter struct {
	mu      sync.Mutex
	cgroups map[string]time.Duration // CPU; guarded by mu
	// forgotten are the cgroups that nobody reads again; guarded by mu
	forgotten []string
}

func (m *meter) use(cgroup string, cpu time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cgroups[cgroup] += cpu
}

func (m *meter) Cgroup(path string) (*pod.Stats, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	cpu, ok := m.cgroups[path]
	if !ok {
		return nil, fmt.Errorf("cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	return &pod.Stats{At: time.Now(), CPUUsage: cpu, Processes: 1}, nil
}

func (m *meter) CgroupMetrics(path string) (*pod.Metrics, error) {
	s, err := m.Cgroup(path)
	if err != nil {
		return nil, err
	}
	return &pod.Metrics{Stats: *s, CPUUser: s.CPUUsage}, nil
}

func (m *meter) Container(c *pod.Container) (*pod.Stats, error) { return m.Cgroup(c.CgroupPath) }

func (m *meter) ContainerMetrics(c *pod.Container) (*pod.Metrics, error) {
	return m.CgroupMetrics(c.CgroupPath)
}

func (m *meter) Network(netns string, pids []int) (*pod.NetworkUsage, error) {
	return &pod.NetworkUsage{Interfaces: []pod.InterfaceUsage{{Name: netns, RxBytes: uint64(len(pids))}}}, nil
}

// gone returns what was forgotten since it was last asked.
func (m *meter) gone() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.forgotten
	m.forgotten = nil
	return all
}

func (m *meter) Forget(cgroup string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgotten = append(m.forgotten, cgroup)
}

func metered(t *testing.T) (*lifecycle.Manager, *meter) {
	t.Helper()
	usage := &meter{cgroups: map[string]time.Duration{}}
	return newWorld(t).start(func(o *lifecycle.Options) { o.Meter = usage }), usage
}

func podIn(t *testing.T, m *lifecycle.Manager, name, parent string) string {
	t.Helper()
	spec := sandbox(name)
	spec.CgroupParent = parent
	id, err := m.RunPod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func podCPU(t *testing.T, m *lifecycle.Manager, id string) time.Duration {
	t.Helper()
	s, err := m.PodStats(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	all, err := m.PodMetrics(t.Context(), id)
	if err != nil || all.CPUUsage != s.CPUUsage {
		t.Errorf("metrics %+v, %v; the statistics say %v", all, err, s.CPUUsage)
	}
	return s.CPUUsage
}

func TestPodCPUNeverDropsWhenAContainerEnds(t *testing.T) {
	m, usage := metered(t)
	for rule, parent := range map[string]string{"a cgroup named after the sandbox": "", "the client's, used by nobody else": "/kubepods/pod1"} {
		t.Run(rule, func(t *testing.T) {
			id := podIn(t, m, "web"+strings.ReplaceAll(parent, "/", ""), parent)
			c := runContainer(t, m, id, "main", "sleep")
			cgroup := stateOf(t, m, c).CgroupPath
			above := cgroup[:strings.LastIndex(cgroup, "/")]
			usage.use(above, 3*time.Second)
			usage.use(cgroup, 2*time.Second)
			if cpu := podCPU(t, m, id); cpu != 3*time.Second {
				t.Errorf("the pod used %v", cpu)
			}
			if err := m.RemoveContainer(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			if cpu := podCPU(t, m, id); cpu != 3*time.Second {
				t.Errorf("when its container had ended, the pod had used %v", cpu)
			}
			if err := m.RemovePod(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if got := usage.gone(); !slices.Equal(got, []string{cgroup, above}) {
				t.Errorf("%v were forgotten, want the container's and the pod's", got)
			}
		})
	}
}

func TestPodsThatShareACgroupAreCountedApart(t *testing.T) {
	m, usage := metered(t)
	usage.use("/shared", time.Hour)
	web, db := podIn(t, m, "web", "/shared"), podIn(t, m, "db", "/shared")
	usage.use(stateOf(t, m, runContainer(t, m, web, "a", "sleep")).CgroupPath, time.Second)
	usage.use(stateOf(t, m, runContainer(t, m, web, "b", "sleep")).CgroupPath, time.Second)
	runContainer(t, m, web, "vanishing", "sleep") // the meter knows no cgroup of it
	if cpu := podCPU(t, m, web); cpu != 2*time.Second {
		t.Errorf("web used %v, want what its containers did", cpu)
	}
	if cpu := podCPU(t, m, db); cpu != 0 {
		t.Errorf("db used %v", cpu)
	}
	if err := m.RemovePod(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	if cpu := podCPU(t, m, web); cpu != time.Hour {
		t.Errorf("web used %v when it was alone in its cgroup, want all of it", cpu)
	}
	above := podIn(t, m, "above", "/")
	if cpu := podCPU(t, m, above); cpu != 0 {
		t.Errorf("a pod whose cgroup holds those of others used %v", cpu)
	}
}

func TestPodNetwork(t *testing.T) {
	m, _ := metered(t)
	id := runPod(t, m, "web")
	runContainer(t, m, id, "main", "sleep")
	s, err := m.PodStats(t.Context(), id)
	if err != nil || s.Network == nil || s.Network.Interfaces[0].RxBytes != 1 || !strings.HasPrefix(s.Network.Interfaces[0].Name, "/netns/") {
		t.Errorf("%+v, %v, want the pod's namespace, through the one process", s, err)
	}
	spec := sandbox("host")
	spec.Namespaces.Network = pod.NamespaceNode
	host, err := m.RunPod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := m.PodStats(t.Context(), host); err != nil || s.Network != nil {
		t.Errorf("on the node's network: %+v, %v", s, err)
	}
}

func TestStatsOfWhatDoesNotRun(t *testing.T) {
	m, _ := metered(t)
	id := createContainer(t, m, runPod(t, m, "web"), "main", "sleep")
	if _, err := m.ContainerStats(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("statistics of a created container: %v", err)
	}
	if _, err := m.ContainerMetrics(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("metrics of a created container: %v", err)
	}
	if _, err := m.PodStats(t.Context(), "absent"); !errdefs.IsNotFound(err) {
		t.Errorf("statistics of no pod: %v", err)
	}
}

func TestUpdatePod(t *testing.T) {
	w := newWorld(t)
	m := w.start()
	id := runPod(t, m, "web")
	for _, step := range []struct{ overhead, resources *pod.Resources }{
		{&pod.Resources{MemoryLimit: 1}, &pod.Resources{CPUShares: 100, MemoryLimit: 2}},
		{nil, &pod.Resources{CPUShares: 200}},
		{nil, nil},
	} {
		if err := m.UpdatePod(t.Context(), id, step.overhead, step.resources); err != nil {
			t.Fatal(err)
		}
	}
	w.stop(m)
	m = w.start()
	sb, err := m.Pod(t.Context(), id)
	if err != nil || sb.Spec.Overhead.MemoryLimit != 1 || sb.Spec.Resources.CPUShares != 200 || sb.Spec.Resources.MemoryLimit != 2 {
		t.Errorf("after a restart: %+v %+v, %v", sb.Spec.Overhead, sb.Spec.Resources, err)
	}
	if err := m.StopPod(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := m.UpdatePod(t.Context(), id, nil, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("update of a stopped pod: %v", err)
	}
	if left := slices.Collect(maps.Keys(w.net.attached)); len(left) > 0 {
		t.Errorf("attached: %v", left)
	}
}
