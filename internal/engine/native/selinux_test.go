package native_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/engine"
	"gantry/internal/engine/native"
	"gantry/internal/image"
	"gantry/internal/keeper"
	"gantry/internal/pod"
	"gantry/internal/resclass"
	"gantry/internal/selabel"
)

// labelled is a station on a node that has SELinux and RDT, as far as a kernel without can have them: what the OCI
// runtime and the kernel would hear is written down, and both hear it without.
type labelled struct {
	*station
	native.Keeper
	native.Rootfs
	policy selabel.Policy
	class  *resclass.Classes
	specs  map[string]*specs.Spec
	mounts map[string]string // labels by the key of the mount
	files  map[string]string // labels by path
}

func newLabelled(t *testing.T) *labelled {
	s := newStation(t, "crun")
	l := &labelled{station: s, Keeper: s.opts.Keeper, Rootfs: s.opts.Rootfs, specs: map[string]*specs.Spec{}, mounts: map[string]string{}, files: map[string]string{}}
	l.policy = selabel.Policy{
		Process: "system_u:system_r:container_t:s0", File: "system_u:object_r:container_file_t:s0",
		Relabel: func(path, label string) error { l.files[path] = label; return nil },
	}
	l.restart(t)
	return l
}

// restart is another server that finds what the one before has left.
func (l *labelled) restart(t *testing.T) {
	t.Helper()
	o := l.opts
	o.Keeper, o.Rootfs, o.Labels, o.Classes = l, l, l.policy, l.class
	var err error
	if l.station.Engine, err = native.New(o); err != nil {
		t.Fatal(err)
	}
}

func (l *labelled) Create(ctx context.Context, req *keeper.Create) (int, error) {
	path := filepath.Join(req.Bundle, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	told, plain := new(specs.Spec), new(specs.Spec)
	if err = json.Unmarshal(data, told); err != nil {
		return 0, err
	}
	l.specs[req.Key] = told
	_ = json.Unmarshal(data, plain)
	plain.Process.SelinuxLabel, plain.Linux.MountLabel, plain.Linux.IntelRdt = "", "", nil
	if data, err = json.Marshal(plain); err != nil {
		return 0, err
	}
	if err = os.WriteFile(path, data, 0o600); err != nil {
		return 0, err
	}
	return l.Keeper.Create(ctx, req)
}

func (l *labelled) Prepare(ctx context.Context, m image.Mount) (string, error) {
	l.mounts[m.Key] = m.Label
	m.Label = ""
	return l.Rootfs.Prepare(ctx, m)
}

// onTheNode keeps /dev/shm from being mounted with a label, which this kernel refuses.
func onTheNode(spec *pod.SandboxSpec) {
	spec.Hostname = ""
	spec.Namespaces = pod.Namespaces{Network: pod.NamespaceNode, PID: pod.NamespaceNode, IPC: pod.NamespaceNode}
}

func (l *labelled) container(p *testPod, change func(*engine.Create)) *specs.Spec {
	p.t.Helper()
	req := p.request("true", func(c *pod.ContainerSpec) { c.Namespaces = p.spec.Namespaces })
	change(req)
	if _, err := p.CreateContainer(p.t.Context(), req); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if err := p.RemoveContainer(context.Background(), req.Spec.Key); err != nil {
			p.t.Error(err)
		}
	})
	told := l.specs[string(req.Spec.Key)]
	if got := l.mounts[string(req.Spec.Key)]; got != told.Linux.MountLabel {
		p.t.Errorf("root file system with label %q, spec %q", got, told.Linux.MountLabel)
	}
	return told
}

func TestAPodHasALabelOfItsOwn(t *testing.T) {
	l := newLabelled(t)
	first := l.newPod(t, onTheNode)
	data := t.TempDir()
	a := l.container(first, func(req *engine.Create) {
		req.Spec.Mounts = []pod.Mount{{ContainerPath: "/data", HostPath: data, SELinuxRelabel: true}, {ContainerPath: "/tmp", HostPath: t.TempDir()}}
		req.Adjust = &pod.Adjustment{Mounts: []pod.MountPoint{
			{Destination: "/plugin", Type: "bind", Source: data + "/.", Options: []string{"bind", "relabel"}},
		}}
	})
	if !strings.HasPrefix(a.Process.SelinuxLabel, "system_u:system_r:container_t:s0:c") {
		t.Errorf("label %q", a.Process.SelinuxLabel)
	}
	want := map[string]string{data: a.Linux.MountLabel, data + "/.": a.Linux.MountLabel, first.files.ResolvConf: a.Linux.MountLabel, first.files.Hostname: a.Linux.MountLabel}
	for path, label := range want {
		if l.files[path] != label || label == "" {
			t.Errorf("%s has label %q, want %q", path, l.files[path], label)
		}
	}
	if len(l.files) != len(want) {
		t.Errorf("relabelled %v", l.files)
	}
	i := slices.IndexFunc(a.Mounts, func(m specs.Mount) bool { return m.Destination == "/plugin" })
	if slices.Contains(a.Mounts[i].Options, "relabel") {
		t.Error("the runtime is told an option that it does not know")
	}

	l.restart(t)
	first.station = l.station
	if b := l.container(first, func(*engine.Create) {}); b.Process.SelinuxLabel != a.Process.SelinuxLabel {
		t.Errorf("labels of one pod: %q and, after a restart, %q", a.Process.SelinuxLabel, b.Process.SelinuxLabel)
	}
	privileged := l.container(first, func(req *engine.Create) { req.Spec.Security.Privileged = true })
	if privileged.Process.SelinuxLabel != "" || privileged.Linux.MountLabel != a.Linux.MountLabel {
		t.Errorf("privileged: %q, %q", privileged.Process.SelinuxLabel, privileged.Linux.MountLabel)
	}
	second := l.newPod(t, onTheNode)
	if c := l.container(second, func(*engine.Create) {}); c.Process.SelinuxLabel == a.Process.SelinuxLabel {
		t.Errorf("two pods have %q", c.Process.SelinuxLabel)
	}
}

// A pod that depends on a label is refused where there are none, and nothing of it stays.
func TestALabelThatTheNodeHasNotIsRefused(t *testing.T) {
	l := newLabelled(t)
	l.policy = selabel.Policy{Missing: "the kernel has no SELinux"}
	l.restart(t)
	spec := pod.SandboxSpec{Key: pod.NewKey(), CgroupParent: l.parent, Security: pod.Security{SELinux: &pod.SELinux{Type: "container_t"}}}
	onTheNode(&spec)
	_, err := l.CreateSandbox(t.Context(), &spec, engine.Files{})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "selinux_options: the kernel has no SELinux") {
		t.Errorf("pod: %v", err)
	}
	if left := l.leftovers(t); len(left) > 0 {
		t.Errorf("left behind %v", left)
	}
	p := l.newPod(t, onTheNode)
	req := p.request("true", func(c *pod.ContainerSpec) {
		c.Namespaces, c.Security.SELinux = p.spec.Namespaces, &pod.SELinux{Level: "s0:c1,c2"}
	})
	if _, err = p.CreateContainer(t.Context(), req); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("container: %v", err)
	}
}

// A class that a plugin wants is the container's from its creation on: a resize that repeats it changes nothing, and
// one that wants another is refused.
func TestAPluginGivesAClass(t *testing.T) {
	resctrl := t.TempDir()
	for _, class := range []string{".", "gold", "silver"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(resctrl, class), 0o755), os.WriteFile(filepath.Join(resctrl, class, "schemata"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	l := newLabelled(t)
	var err error
	if l.class, err = resclass.Load(resclass.Options{ResctrlRoot: resctrl}); err != nil {
		t.Fatal(err)
	}
	l.policy = selabel.Policy{}
	l.restart(t)
	p := l.newPod(t, onTheNode)
	gold, silver := "gold", "silver"
	var asked *pod.ContainerSpec
	told := l.container(p, func(req *engine.Create) {
		asked = req.Spec
		req.Spec.Annotations = map[string]string{"io.kubernetes.cri.rdt-class": silver}
		req.Spec.Resources.Extra.RDTClass = &gold
	})
	if told.Linux.IntelRdt == nil || told.Linux.IntelRdt.ClosID != gold {
		t.Fatalf("the runtime is told %+v", told.Linux.IntelRdt)
	}
	l.restart(t)
	if err = l.UpdateContainer(t.Context(), asked.Key, &asked.Resources); err != nil {
		t.Errorf("a resize that repeats the class: %v", err)
	}
	other := asked.Resources
	other.Extra.RDTClass = &silver
	if err = l.UpdateContainer(t.Context(), asked.Key, &other); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "rdt_class") {
		t.Errorf("a resize to another class: %v", err)
	}
}
