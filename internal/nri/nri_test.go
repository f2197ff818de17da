package nri_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"gantry/internal/nri"
	"gantry/internal/pod"
)

// runtime is a node with one pod and one container.
type runtime struct {
	mu        sync.Mutex
	sandbox   *pod.Sandbox
	container *pod.Container
	updates   []pod.ContainerUpdate // that plugins wanted; guarded by mu
}

func newRuntime() *runtime {
	return &runtime{
		sandbox: &pod.Sandbox{Spec: pod.SandboxSpec{Key: "p1", Metadata: pod.Metadata{Name: "web", UID: "u1", Namespace: "ns"}}, State: pod.SandboxReady},
		container: &pod.Container{
			Spec: pod.ContainerSpec{
				Key: "c1", Sandbox: "p1", Name: "main", Env: []pod.Var{{Name: "OWN", Value: "1"}},
				Devices: []pod.Device{{HostPath: "/dev/null", ContainerPath: "/dev/nothing"}},
			},
			State: pod.ContainerRunning,
		},
	}
}

func (r *runtime) event(at pod.Moment) *pod.ContainerEvent {
	return &pod.ContainerEvent{
		At: at, Sandbox: r.sandbox, Container: r.container,
		Image: func() *pod.Image { return &pod.Image{Config: pod.ImageConfig{Env: []string{"PATH=/bin", "OWN=0"}}} },
	}
}

func (r *runtime) Everything() ([]*pod.Sandbox, []*pod.ContainerEvent) {
	return []*pod.Sandbox{r.sandbox}, []*pod.ContainerEvent{r.event("")}
}

func (r *runtime) UpdateContainers(_ context.Context, updates []pod.ContainerUpdate) (failed []pod.ContainerUpdate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.updates = append(r.updates, updates...)
	return slices.DeleteFunc(slices.Clone(updates), func(u pod.ContainerUpdate) bool { return u.Container == "c1" })
}

// plugin does what its functions say.
type plugin struct {
	stub   stub.Stub
	create func(ctx context.Context, c *api.Container) (*api.ContainerAdjustment, error)
	resize func(r *api.LinuxResources) []*api.ContainerUpdate
	shown  chan []*api.Container

	mu   sync.Mutex
	ends []string // of containers, as told; guarded by mu
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ends = append(p.ends, "stop "+c.GetId())
	return nil, nil
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ends = append(p.ends, "remove "+c.GetId())
	return nil
}

func (p *plugin) Synchronize(_ context.Context, _ []*api.PodSandbox, all []*api.Container) ([]*api.ContainerUpdate, error) {
	p.shown <- all
	return nil, nil
}

func (p *plugin) CreateContainer(ctx context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if p.create == nil {
		return nil, nil, nil
	}
	a, err := p.create(ctx, c)
	return a, nil, err
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, _ *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if p.resize == nil {
		return nil, nil
	}
	return p.resize(r), nil
}

// patient is the time for an answer where every plugin answers, however slow the machine is.
const patient = 30 * time.Second

// start serves plugins, which have patient for an answer.
func start(t *testing.T, r *runtime) (n *nri.NRI, socket string) {
	t.Helper()
	dir := t.TempDir()
	socket = filepath.Join(dir, "nri.sock")
	n, err := nri.New(nri.Options{
		Version: "test", Socket: socket, PluginDir: filepath.Join(dir, "plugins"), ConfigDir: filepath.Join(dir, "conf.d"),
		RegistrationTimeout: patient, RequestTimeout: patient,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n, socket
}

// join connects a plugin and returns when it is one that events are told.
func join(t *testing.T, n *nri.NRI, socket, name string, p *plugin) {
	t.Helper()
	p.shown = make(chan []*api.Container, 1)
	s, err := stub.New(p, stub.WithPluginIdx(name[:2]), stub.WithPluginName(name[3:]), stub.WithSocketPath(socket), stub.WithOnClose(func() {}))
	if err != nil {
		t.Fatal(err)
	}
	p.stub = s
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	until(t, "the plugin is listed", func() bool {
		return slices.ContainsFunc(n.Plugins(), func(one nri.Plugin) bool { return one.Name == name && one.Lost.IsZero() })
	})
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline, tick := time.NewTimer(time.Minute), time.NewTicker(5*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline.C:
			t.Fatalf("not so: %s", what)
		case <-tick.C:
		}
	}
}

// everything is an adjustment of all that NRI has.
func everything() *api.ContainerAdjustment {
	return &api.ContainerAdjustment{
		Annotations: map[string]string{"a": "1", "-b": ""},
		Mounts:      []*api.Mount{{Destination: "/m", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro"}}, {Destination: "-/gone"}},
		Env:         []*api.KeyValue{{Key: "NEW", Value: "1"}, {Key: "-OWN"}},
		Hooks: &api.Hooks{
			Prestart: hook("a"), CreateRuntime: hook("b"), CreateContainer: hook("c"), StartContainer: hook("d"), Poststart: hook("e"), Poststop: hook("f"),
		},
		Rlimits:    []*api.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 2, Soft: 1}},
		CDIDevices: []*api.CDIDevice{{Name: "vendor.com/class=one"}},
		Args:       []string{"", "sleep", "1"},
		Linux: &api.LinuxContainerAdjustment{
			Devices:   []*api.LinuxDevice{{Path: "/dev/new", Type: "c", Major: 1, Minor: 5, FileMode: &api.OptionalFileMode{Value: 0o600}, Uid: api.UInt32(uint32(7)), Gid: api.UInt32(uint32(8))}, {Path: "-/dev/nothing"}},
			Resources: allResources(), CgroupsPath: "/other", OomScoreAdj: api.Int(500),
			IoPriority: &api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_BE, Priority: 3},
			SeccompPolicy: &api.LinuxSeccomp{
				DefaultAction: "SCMP_ACT_ERRNO", DefaultErrno: api.UInt32(uint32(38)), Architectures: []string{"SCMP_ARCH_X86_64"}, Flags: []string{"SECCOMP_FILTER_FLAG_LOG"},
				ListenerPath: "/listener", ListenerMetadata: "meta",
				Syscalls: []*api.LinuxSyscall{{
					Names: []string{"read"}, Action: "SCMP_ACT_ALLOW", ErrnoRet: api.UInt32(uint32(1)),
					Args: []*api.LinuxSeccompArg{{Index: 1, Value: 2, ValueTwo: 3, Op: "SCMP_CMP_EQ"}},
				}},
			},
			Namespaces: []*api.LinuxNamespace{{Type: "uts", Path: "/ns/uts"}, {Type: "-ipc"}},
			Sysctl:     map[string]string{"net.a": "1", "-net.b": ""},
			NetDevices: map[string]*api.LinuxNetDevice{"eth1": {Name: "lan"}, "-eth2": {}},
			Scheduler: &api.LinuxScheduler{
				Policy: api.LinuxSchedulerPolicy_SCHED_DEADLINE, Nice: 1, Priority: 2, Flags: []api.LinuxSchedulerFlag{api.LinuxSchedulerFlag_SCHED_FLAG_RECLAIM},
				Runtime: 3, Deadline: 4, Period: 5,
			},
			Rdt:          &api.LinuxRdt{ClosId: api.String("clos"), Schemata: api.RepeatedString([]string{"L3:0=f"}), EnableMonitoring: api.Bool(true), Remove: true},
			MemoryPolicy: &api.LinuxMemoryPolicy{Mode: api.MpolMode_MPOL_BIND, Nodes: "0", Flags: []api.MpolFlag{api.MpolFlag_MPOL_F_STATIC_NODES}},
		},
	}
}

func hook(name string) []*api.Hook {
	return []*api.Hook{{Path: "/" + name, Args: []string{name}, Env: []string{"H=1"}, Timeout: api.Int(2)}}
}

func allResources() *api.LinuxResources {
	return &api.LinuxResources{
		Memory: &api.LinuxMemory{
			Limit: api.Int64(1), Reservation: api.Int64(2), Swap: api.Int64(3), Kernel: api.Int64(4), KernelTcp: api.Int64(5),
			Swappiness: api.UInt64(6), DisableOomKiller: api.Bool(true), UseHierarchy: api.Bool(true),
		},
		Cpu: &api.LinuxCPU{
			Shares: api.UInt64(7), Quota: api.Int64(8), Period: api.UInt64(9), RealtimeRuntime: api.Int64(10), RealtimePeriod: api.UInt64(11), Cpus: "0", Mems: "1",
		},
		HugepageLimits: []*api.HugepageLimit{{PageSize: "2MB", Limit: 12}},
		BlockioClass:   api.String("slow"), RdtClass: api.String("gold"), Unified: map[string]string{"memory.high": "13"},
		Devices: []*api.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: api.Int64(14), Minor: api.Int64(15), Access: "r"}},
		Pids:    &api.LinuxPids{Limit: 16},
	}
}

func ptr[T any](v T) *T { return &v }

func wantedResources() *pod.Resources {
	return &pod.Resources{
		CPUPeriod: 9, CPUQuota: 8, CPUShares: 7, MemoryLimit: 1, MemorySwapLimit: 3, CPUSetCPUs: "0", CPUSetMems: "1",
		HugepageLimits: []pod.HugepageLimit{{PageSize: "2MB", Limit: 12}}, Unified: map[string]string{"memory.high": "13"},
		Extra: pod.ExtraResources{
			MemoryReservation: 2, KernelMemory: 4, KernelTCPMemory: 5, Swappiness: ptr(uint64(6)), DisableOOMKiller: ptr(true), UseHierarchy: ptr(true),
			RealtimeRuntime: ptr(int64(10)), RealtimePeriod: 11, PidsLimit: ptr(int64(16)), BlockIOClass: ptr("slow"), RDTClass: ptr("gold"),
			DeviceRules: []pod.DeviceRule{{Allow: true, Type: "c", Major: ptr(int64(14)), Minor: ptr(int64(15)), Access: "r"}},
		},
	}
}

func wanted() *pod.Adjustment {
	h := func(name string) []pod.Hook {
		return []pod.Hook{{Path: "/" + name, Args: []string{name}, Env: []string{"H=1"}, Timeout: ptr(2)}}
	}
	return &pod.Adjustment{
		Annotations: pod.Edit{Set: map[string]string{"a": "1"}, Remove: []string{"b"}},
		Args:        []string{"sleep", "1"}, Env: []pod.Var{{Name: "NEW", Value: "1"}}, RemoveEnv: []string{"OWN"},
		Mounts:       []pod.MountPoint{{Destination: "/m", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro"}}},
		RemoveMounts: []string{"/gone"},
		Hooks: pod.Hooks{
			Prestart: h("a"), CreateRuntime: h("b"), CreateContainer: h("c"), StartContainer: h("d"), Poststart: h("e"), Poststop: h("f"),
		},
		Rlimits: []pod.Rlimit{{Type: "RLIMIT_NOFILE", Hard: 2, Soft: 1}}, CDIDevices: []string{"vendor.com/class=one"},
		Devices:       []pod.DeviceNode{{Path: "/dev/new", Type: "c", Major: 1, Minor: 5, Mode: ptr(uint32(0o600)), UID: ptr(uint32(7)), GID: ptr(uint32(8))}},
		RemoveDevices: []string{"/dev/nothing"}, Resources: wantedResources(), OOMScoreAdj: ptr(int64(500)), CgroupsPath: "/other",
		IOPriority: &pod.IOPriority{Class: "IOPRIO_CLASS_BE", Priority: 3},
		Scheduler:  &pod.Scheduler{Policy: "SCHED_DEADLINE", Nice: 1, Priority: 2, Flags: []string{"SCHED_FLAG_RECLAIM"}, Runtime: 3, Deadline: 4, Period: 5},
		Seccomp: &pod.SeccompProgram{
			DefaultAction: "SCMP_ACT_ERRNO", DefaultErrno: ptr(uint32(38)), Architectures: []string{"SCMP_ARCH_X86_64"},
			Flags: []string{"SECCOMP_FILTER_FLAG_LOG"}, ListenerPath: "/listener", ListenerMetadata: "meta",
			Syscalls: []pod.SeccompRule{{
				Names: []string{"read"}, Action: "SCMP_ACT_ALLOW", Errno: ptr(uint32(1)), Args: []pod.SeccompArg{{Index: 1, Value: 2, ValueTwo: 3, Op: "SCMP_CMP_EQ"}},
			}},
		},
		Namespaces:   pod.Edit{Set: map[string]string{"uts": "/ns/uts"}, Remove: []string{"ipc"}},
		Sysctls:      pod.Edit{Set: map[string]string{"net.a": "1"}, Remove: []string{"net.b"}},
		NetDevices:   pod.Edit{Set: map[string]string{"eth1": "lan"}, Remove: []string{"eth2"}},
		RDT:          &pod.RDT{ClosID: ptr("clos"), Schemata: &[]string{"L3:0=f"}, Monitoring: ptr(true)},
		MemoryPolicy: &pod.MemoryPolicy{Mode: "MPOL_BIND", Nodes: "0", Flags: []string{"MPOL_F_STATIC_NODES"}},
	}
}

// unset lists the fields of m, and of what it holds, that have no value. Those that the library has
// for itself do not count.
func unset(m protoreflect.Message, path string) []string {
	var names []string
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name := path + "." + string(f.Name())
		switch {
		case !m.Has(f):
			names = append(names, name)
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			names = append(names, unset(m.Get(f).List().Get(0).Message(), name)...)
		case f.Kind() == protoreflect.MessageKind && !f.IsMap():
			names = append(names, unset(m.Get(f).Message(), name)...)
		}
	}
	return names
}

// Everything that NRI can adjust reaches the engines; a field that the library gets in a later version
// makes this test fail until it does too.
func TestEveryAdjustmentIsTakenOver(t *testing.T) {
	if missing := unset(everything().ProtoReflect(), ""); len(missing) > 0 {
		t.Fatalf("the test does not set %v", missing)
	}
	r := newRuntime()
	n, socket := start(t, r)
	p := &plugin{create: func(context.Context, *api.Container) (*api.ContainerAdjustment, error) { return everything(), nil }}
	join(t, n, socket, "10-all", p)
	answer, err := n.Container(t.Context(), r.event(pod.MomentCreate))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(wanted(), answer.Adjustment); d != "" {
		t.Error(d)
	}
}

// What a plugin wants of a resize is what is done, and what the library does not pass on is refused.
func TestResize(t *testing.T) {
	r := newRuntime()
	n, socket := start(t, r)
	p := &plugin{resize: func(asked *api.LinuxResources) []*api.ContainerUpdate {
		u := &api.ContainerUpdate{ContainerId: "c1", Linux: &api.LinuxContainerUpdate{Resources: allResources()}}
		u.Linux.Resources.Devices, u.Linux.Resources.Pids = nil, nil
		if asked.GetMemory().GetLimit().GetValue() == 0 {
			u.Linux.Resources.Pids = &api.LinuxPids{Limit: 1}
		}
		other := proto.Clone(u).(*api.ContainerUpdate)
		other.ContainerId = "c2"
		return []*api.ContainerUpdate{u, other}
	}}
	join(t, n, socket, "10-resizes", p)
	ev := r.event(pod.MomentUpdate)
	ev.Resources = &pod.Resources{MemoryLimit: 99, OOMScoreAdj: 17}
	answer, err := n.Container(t.Context(), ev)
	if err != nil {
		t.Fatal(err)
	}
	own := wantedResources()
	own.OOMScoreAdj = 17
	own.Extra.DeviceRules, own.Extra.PidsLimit = nil, nil
	if d := cmp.Diff(own, answer.Resources); d != "" {
		t.Error(d)
	}
	if len(answer.Updates) != 1 || answer.Updates[0].Container != "c2" {
		t.Errorf("updates of others: %+v", answer.Updates)
	}
	ev.Resources = &pod.Resources{CPUShares: 2}
	if _, err = n.Container(t.Context(), ev); err == nil || !strings.Contains(err.Error(), "linux.resources.pids") {
		t.Errorf("a limit of processes that the library drops: %v", err)
	}
}

// A plugin may ask for changes while it is being told of something.
func TestUpdateFromWithinAnEvent(t *testing.T) {
	r := newRuntime()
	n, socket := start(t, r)
	p := &plugin{}
	var failed []*api.ContainerUpdate
	p.create = func(context.Context, *api.Container) (*api.ContainerAdjustment, error) {
		var err error
		failed, err = p.stub.UpdateContainers([]*api.ContainerUpdate{{ContainerId: "c1"}, {ContainerId: "c9"}})
		return nil, err
	}
	join(t, n, socket, "10-asks", p)
	if _, err := n.Container(t.Context(), r.event(pod.MomentCreate)); err != nil {
		t.Fatal(err)
	}
	if len(r.updates) != 2 || len(failed) != 1 || failed[0].ContainerId != "c9" {
		t.Errorf("asked for %+v, failed %+v", r.updates, failed)
	}
}

// A plugin that does not answer is disconnected after its time, with the reason, and what it was asked
// goes on; a refusal names who refused.
func TestFailures(t *testing.T) {
	r := newRuntime()
	n, socket := start(t, r)
	release := make(chan struct{})
	defer close(release)
	join(t, n, socket, "10-hangs", &plugin{create: func(context.Context, *api.Container) (*api.ContainerAdjustment, error) {
		<-release
		return nil, nil
	}})
	adaptation.SetPluginRequestTimeout(time.Second) // for the one that hangs alone
	if _, err := n.Container(t.Context(), r.event(pod.MomentCreate)); err != nil {
		t.Errorf("after a plugin that hangs: %v", err)
	}
	adaptation.SetPluginRequestTimeout(patient)
	until(t, "the plugin is lost, with a reason", func() bool {
		all := n.Plugins()
		return len(all) == 1 && !all[0].Lost.IsZero() && strings.Contains(all[0].Reason, "CreateContainer")
	})
	if n.Listening() {
		t.Error("a lost plugin listens")
	}
	join(t, n, socket, "20-refuses", &plugin{create: func(context.Context, *api.Container) (*api.ContainerAdjustment, error) {
		return nil, errors.New("no room")
	}})
	_, err := n.Container(t.Context(), r.event(pod.MomentCreate))
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "20-refuses") || !strings.Contains(err.Error(), "no room") {
		t.Errorf("error %v", err)
	}
}

// A plugin that joins is shown what there is, as it will be for the container.
func TestPluginsThatJoin(t *testing.T) {
	r := newRuntime()
	n, socket := start(t, r)
	if n.Listening() {
		t.Error("somebody listens on a node without plugins")
	}
	p := &plugin{}
	join(t, n, socket, "10-late", p)
	shown := <-p.shown
	if len(shown) != 1 || shown[0].State != api.ContainerState_CONTAINER_RUNNING || !slices.Equal(shown[0].Env, []string{"PATH=/bin", "OWN=1"}) {
		t.Errorf("shown %+v", shown)
	}
	p.stub.Stop()
	until(t, "the plugin is gone", func() bool { return !n.Listening() })
}

// The socket of another process is left to it.
func TestSocketOfAnother(t *testing.T) {
	_, socket := start(t, newRuntime())
	n, err := nri.New(nri.Options{Socket: socket, RegistrationTimeout: patient, RequestTimeout: patient})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(t.Context(), newRuntime()); !errdefs.IsAlreadyExists(err) {
		t.Errorf("error %v", err)
	}
}

// Nothing is told of whose beginning was not told, no end twice, and the end before the removal.
func TestWhatIsTold(t *testing.T) {
	r := newRuntime()
	n, socket := start(t, r)
	p := &plugin{}
	join(t, n, socket, "10-listens", p)
	unknown := r.event(pod.MomentStop)
	unknown.Container = &pod.Container{Spec: pod.ContainerSpec{Key: "c9", Sandbox: "p1"}}
	for _, ev := range []*pod.ContainerEvent{unknown, r.event(pod.MomentRemove), r.event(pod.MomentRemove), r.event(pod.MomentStop)} {
		if _, err := n.Container(t.Context(), ev); err != nil {
			t.Fatal(err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if want := []string{"stop c1", "remove c1"}; !slices.Equal(p.ends, want) {
		t.Errorf("told %v, want %v", p.ends, want)
	}
}

// BenchmarkNobodyListens is what the life of a pod with a container pays on a node without plugins.
func BenchmarkNobodyListens(b *testing.B) {
	n, err := nri.New(nri.Options{Socket: filepath.Join(b.TempDir(), "nri.sock"), PluginDir: b.TempDir(), RegistrationTimeout: time.Second, RequestTimeout: time.Second})
	if err != nil {
		b.Fatal(err)
	}
	r := newRuntime()
	for b.Loop() {
		for _, at := range []pod.Moment{pod.MomentRun, pod.MomentStop, pod.MomentRemove} {
			_ = n.Pod(b.Context(), &pod.SandboxEvent{At: at, Sandbox: r.sandbox})
		}
		for _, at := range []pod.Moment{pod.MomentCreate, pod.MomentCreated, pod.MomentStart, pod.MomentStarted, pod.MomentStop, pod.MomentRemove} {
			_, _ = n.Container(b.Context(), r.event(at))
		}
	}
}
