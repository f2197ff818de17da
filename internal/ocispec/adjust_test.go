package ocispec_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/ocispec"
	"gantry/internal/pod"
)

// adjusted has everything that is left for an engine to do.
func adjusted() *pod.Adjustment {
	return &pod.Adjustment{
		Annotations: pod.Edit{Set: map[string]string{"a": "1"}, Remove: []string{"old"}}, RemoveEnv: []string{"OLD"},
		Mounts:       []pod.MountPoint{{Destination: "/new", Type: "bind", Source: "/src", Options: []string{"rbind", "rshared", "relabel"}}},
		RemoveMounts: []string{"/old"}, Hooks: pod.Hooks{Prestart: []pod.Hook{{Path: "/hook"}}, Poststop: []pod.Hook{{Path: "/end"}}},
		Rlimits: []pod.Rlimit{{Type: "RLIMIT_CORE", Hard: 2, Soft: 1}}, Devices: []pod.DeviceNode{{Path: "/dev/new", Type: "c", Major: 1, Minor: 5}},
		RemoveDevices: []string{"/dev/old"}, IOPriority: &pod.IOPriority{Class: "IOPRIO_CLASS_BE", Priority: 3},
		Scheduler: &pod.Scheduler{Policy: "SCHED_BATCH", Nice: 3}, Seccomp: &pod.SeccompProgram{DefaultAction: "SCMP_ACT_ALLOW", DefaultErrno: ptr(uint32(1))},
		Namespaces: pod.Edit{Set: map[string]string{"uts": "/ns/uts"}, Remove: []string{"ipc"}},
		Sysctls:    pod.Edit{Set: map[string]string{"net.a": "1"}}, NetDevices: pod.Edit{Set: map[string]string{"eth1": "lan"}},
		RDT: &pod.RDT{ClosID: ptr("clos"), Schemata: &[]string{"L3:0=f"}, Monitoring: ptr(true)}, MemoryPolicy: &pod.MemoryPolicy{Mode: "MPOL_BIND", Nodes: "0"},
	}
}

func before() *specs.Spec {
	return &specs.Spec{
		Annotations: map[string]string{"old": "1"},
		Process:     &specs.Process{Env: []string{"OLD=1", "KEPT=1"}},
		Mounts:      []specs.Mount{{Destination: "/proc"}, {Destination: "/old"}},
		Linux: &specs.Linux{
			Resources:  &specs.LinuxResources{},
			Devices:    []specs.LinuxDevice{{Path: "/dev/old"}},
			Namespaces: []specs.LinuxNamespace{{Type: "uts"}, {Type: "ipc"}},
		},
	}
}

func text(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// Every field of an adjustment changes the spec, or is refused by its name where the runtime would
// ignore it. A field that pod.Adjustment gets later makes this test fail until one of both is true.
func TestNoAdjustmentIsDropped(t *testing.T) {
	folded := []string{"Args", "Env", "CDIDevices", "Resources", "OOMScoreAdj", "CgroupsPath"} // not Adjust's to do
	all := reflect.ValueOf(adjusted()).Elem()
	for i := range all.NumField() {
		name := all.Type().Field(i).Name
		if slices.Contains(folded, name) {
			continue
		}
		t.Run(name, func(t *testing.T) {
			if all.Field(i).IsZero() {
				t.Fatal("the test does not set it")
			}
			one := &pod.Adjustment{}
			reflect.ValueOf(one).Elem().Field(i).Set(all.Field(i))
			s := before()
			if err := ocispec.Adjust(s, one, &ocispec.Node{OCIVersion: "1.3.0"}); err != nil {
				t.Fatal(err)
			}
			if text(t, s) == text(t, before()) {
				t.Error("the spec is as it was")
			}
			s = before()
			err := ocispec.Adjust(s, one, &ocispec.Node{OCIVersion: "1.0.2"})
			if err == nil && text(t, s) == text(t, before()) || err != nil && (!errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), one.Fields()[0])) {
				t.Errorf("with an old runtime: %v", err)
			}
		})
	}
}

func TestAdjust(t *testing.T) {
	s := before()
	if err := ocispec.Adjust(s, adjusted(), &ocispec.Node{OCIVersion: "1.3.0"}); err != nil {
		t.Fatal(err)
	}
	for what, is := range map[string]bool{
		"what is removed goes, the rest stays":         slices.Equal(s.Process.Env, []string{"KEPT=1"}) && len(s.Mounts) == 2,
		"NRI's own option does not reach the runtime":  !slices.Contains(s.Mounts[1].Options, "relabel"),
		"a mount that propagates makes the root do so": s.Linux.RootfsPropagation == "rshared",
		"a device that is given may be used":           len(s.Linux.Resources.Devices) == 1 && s.Linux.Resources.Devices[0].Allow,
		"a namespace is replaced, or the node's":       len(s.Linux.Namespaces) == 1 && s.Linux.Namespaces[0].Path == "/ns/uts",
		"a schema of RDT is not forgotten":             s.Linux.IntelRdt.ClosID == "clos" && s.Linux.IntelRdt.EnableMonitoring,
		"the error number of seccomp is not forgotten": *s.Linux.Seccomp.DefaultErrnoRet == 1,
	} {
		if !is {
			t.Errorf("not so: %s\n%s", what, text(t, s))
		}
	}
}

// Every limit that only plugins ask for changes what the runtime is told, or is refused by its name.
func TestNoExtraResourceIsDropped(t *testing.T) {
	all := reflect.ValueOf(pod.ExtraResources{
		MemoryReservation: 1, KernelMemory: 2, KernelTCPMemory: 3, Swappiness: ptr(uint64(0)), DisableOOMKiller: ptr(false), UseHierarchy: ptr(false),
		RealtimeRuntime: ptr(int64(0)), RealtimePeriod: 4, PidsLimit: ptr(int64(5)), BlockIOClass: ptr("slow"), RDTClass: ptr("gold"),
		DeviceRules: []pod.DeviceRule{{Allow: true}},
	})
	for i := range all.NumField() {
		for _, node := range []ocispec.Node{{CgroupV2: true}, {CgroupV2: false}} {
			var r pod.Resources
			reflect.ValueOf(&r.Extra).Elem().Field(i).Set(all.Field(i))
			res, err := ocispec.Resources(&r, &node)
			name := r.Extra.Fields()[0]
			if err == nil && text(t, res) == "{}" || err != nil && (!errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), name)) {
				t.Errorf("%s, cgroup v2 %t: %s, %v", name, node.CgroupV2, text(t, res), err)
			}
		}
	}
}
