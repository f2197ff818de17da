package docker_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/system"

	"gantry/internal/engine"
	"gantry/internal/engine/docker"
	"gantry/internal/pod"
)

var update = flag.Bool("update", false, "rewrite docs/docker-fields.md")

const fieldsDoc = "../../../docs/docker-fields.md"

const fieldsHead = `# What Docker Engine cannot express

The fields of the CRI that pods on Docker are refused with Unimplemented, and from which Docker on they are not. All
others are as in [features.md](features.md). A test writes this page and holds the engine to it
(` + "`go test ./internal/engine/docker -run TestRefused -update`" + `).

| field | Docker 20.10 (API 1.41) | today's (API 1.56) | said |
|---|---|---|---|
`

// fields are what Docker may not have, each with a request that asks for it.
var fields = []struct {
	name string
	ask  func(*engine.Create)
}{
	{"namespace_options.userns_options", func(r *engine.Create) {
		r.Spec.Namespaces.User = &pod.UserNamespace{UIDs: []pod.IDMapping{{HostID: 1 << 16, Length: 1 << 16}}}
	}},
	{"capabilities.add_ambient_capabilities", func(r *engine.Create) { r.Spec.Security.AddAmbientCaps = []string{"NET_BIND_SERVICE"} }},
	{"resources.hugepage_limits", func(r *engine.Create) {
		r.Spec.Resources.HugepageLimits = []pod.HugepageLimit{{PageSize: "2MB", Limit: 1 << 21}}
	}},
	{"resources.unified: pids.max", func(r *engine.Create) { r.Spec.Resources.Unified = map[string]string{"pids.max": "10"} }},
	{"resources.unified: any other", func(r *engine.Create) { r.Spec.Resources.Unified = map[string]string{"memory.high": "1000000"} }},
	{"CDI_devices", func(r *engine.Create) { r.Spec.CDIDevices = []string{"vendor.example/gpu=0"} }},
	{"mounts.image", func(r *engine.Create) { r.Spec.Mounts = []pod.Mount{{ContainerPath: "/m", Image: "sha256:00"}} }},
	{"mounts.recursive_read_only", func(r *engine.Create) {
		r.Spec.Mounts = []pod.Mount{{ContainerPath: "/m", HostPath: "/", ReadOnly: true, RecursiveReadOnly: true}}
	}},
	{"mounts.mount_options", func(r *engine.Create) {
		r.Spec.Mounts = []pod.Mount{{ContainerPath: "/m", HostPath: "/", Options: []string{"noexec"}}}
	}},
	{"mounts.uidMappings, gidMappings", func(r *engine.Create) {
		r.Spec.Mounts = []pod.Mount{{ContainerPath: "/m", HostPath: "/", UIDs: []pod.IDMapping{{Length: 1}}}}
	}},
	{"annotations: classes of block I/O", func(r *engine.Create) {
		r.Sandbox.Spec.Annotations = map[string]string{"blockio.resources.beta.kubernetes.io/container.main": "gold"}
	}},
	{"annotations: classes of RDT", func(r *engine.Create) {
		r.Sandbox.Spec.Annotations = map[string]string{"rdt.resources.beta.kubernetes.io/pod": "gold"}
	}},
	{"NRI: mounts of another type than bind", func(r *engine.Create) {
		r.Adjust = &pod.Adjustment{Mounts: []pod.MountPoint{{Destination: "/m", Type: "overlay"}}}
	}},
	{"NRI: rlimits", func(r *engine.Create) {
		r.Adjust = &pod.Adjustment{Rlimits: []pod.Rlimit{{Type: "RLIMIT_NOFILE", Hard: 10, Soft: 5}}}
	}},
	{"NRI: annotations", func(r *engine.Create) {
		r.Adjust = &pod.Adjustment{Annotations: pod.Edit{Set: map[string]string{"a": "b"}}}
	}},
	{"NRI: limits of processes, memory reservation, swappiness, real-time CPU", func(r *engine.Create) {
		limit, swappiness := int64(10), uint64(5)
		r.Adjust = &pod.Adjustment{Resources: &pod.Resources{Extra: pod.ExtraResources{PidsLimit: &limit, Swappiness: &swappiness, MemoryReservation: 1 << 20}}}
	}},
	{"NRI: classes of block I/O and RDT", func(r *engine.Create) {
		class := "gold"
		r.Adjust = &pod.Adjustment{Resources: &pod.Resources{Extra: pod.ExtraResources{BlockIOClass: &class}}}
	}},
	{"NRI: device rules, kernel memory", func(r *engine.Create) {
		r.Adjust = &pod.Adjustment{Resources: &pod.Resources{Extra: pod.ExtraResources{KernelMemory: 1 << 20}}}
	}},
	{"NRI: devices, hooks, seccomp, namespaces, sysctls and the rest", func(r *engine.Create) {
		r.Adjust = &pod.Adjustment{Sysctls: pod.Edit{Set: map[string]string{"a": "b"}}}
	}},
}

// TestRefused asks for every such field, finds the field's name in each refusal and writes the page.
func TestRefused(t *testing.T) {
	var doc strings.Builder
	doc.WriteString(fieldsHead)
	for _, f := range fields {
		cells, said := make([]string, 0, 2), ""
		for _, api := range []string{"1.41", "1.56"} {
			n, err := docker.NewNode(system.Info{CgroupDriver: "cgroupfs", CgroupVersion: "2", ServerVersion: map[string]string{"1.41": "20.10", "1.56": "today"}[api]}, api)
			if err != nil {
				t.Fatal(err)
			}
			r := request()
			f.ask(r)
			_, err = n.Container(r)
			switch {
			case err == nil:
				cells = append(cells, "supported")
			case errdefs.IsNotImplemented(err):
				cells = append(cells, "refused")
				if said == "" {
					said = strings.TrimSuffix(err.Error(), ": "+errdefs.ErrNotImplemented.Error())
				}
			default:
				t.Errorf("%s: %v; want it done or refused", f.name, err)
			}
		}
		fmt.Fprintf(&doc, "| %s | %s | %s |\n", f.name, strings.Join(cells, " | "), said)
	}
	if *update {
		if err := os.WriteFile(fieldsDoc, []byte(doc.String()), 0o644); err != nil { //nolint:gosec // a document
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(fieldsDoc)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != doc.String() {
		t.Errorf("%s is not what the code does; run this test with -update", fieldsDoc)
	}
}

func TestLabelsOfSELinux(t *testing.T) {
	for rule, tt := range map[string]struct {
		security pod.Security
		daemon   []string
		want     string // "" is none
		refused  bool
	}{
		"where the daemon labels":         {pod.Security{SELinux: &pod.SELinux{Type: "t", Level: "s0:c1,c2"}}, []string{"name=selinux"}, "label=type:t label=level:s0:c1,c2", false},
		"an empty one":                    {pod.Security{SELinux: &pod.SELinux{}}, []string{"name=selinux"}, "", false},
		"where the daemon labels nothing": {pod.Security{SELinux: &pod.SELinux{Type: "t"}}, nil, "", true},
		"what nothing confines":           {pod.Security{SELinux: &pod.SELinux{Type: "spc_t"}}, nil, "", false},
	} {
		n, err := docker.NewNode(system.Info{CgroupDriver: "cgroupfs", SecurityOptions: tt.daemon}, "1.56")
		if err != nil {
			t.Fatal(err)
		}
		r := request()
		r.Spec.Security = tt.security
		asked, err := n.Container(r)
		if errdefs.IsFailedPrecondition(err) != tt.refused || err != nil && !tt.refused {
			t.Errorf("%s: %v", rule, err)
		}
		if tt.refused {
			continue
		}
		labels := slices.DeleteFunc(asked.HostConfig.SecurityOpt, func(o string) bool { return !strings.HasPrefix(o, "label=") })
		if got := strings.Join(labels, " "); got != tt.want {
			t.Errorf("%s: %q", rule, got)
		}
		r.Sandbox.Spec.Security = tt.security
		if _, err = n.Pause(&r.Sandbox.Spec); err != nil {
			t.Errorf("%s: pod: %v", rule, err)
		}
	}
}

// request is one that Docker has words for.
func request() *engine.Create {
	key := pod.NewKey()
	sandbox := &pod.Sandbox{ID: "sandbox-id", Spec: pod.SandboxSpec{
		Key: key, Metadata: pod.Metadata{Name: "web", Namespace: "shop", UID: "uid"},
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, IPC: pod.NamespacePod},
	}}
	return &engine.Create{
		Spec:    &pod.ContainerSpec{Key: pod.NewKey(), Sandbox: key, Name: "main", Namespaces: sandbox.Spec.Namespaces},
		Sandbox: sandbox, Files: engine.Files{ResolvConf: "/pod/resolv.conf", Hosts: "/pod/hosts", Hostname: "/pod/hostname"},
		Image: &pod.Image{ID: "sha256:00"},
	}
}
