package cri_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/engine"
	"gantry/internal/engine/docker"
)

// unsaid are the fields that some Docker Engine has no word for, by method. A request that it takes is made
// without them.
var unsaid = map[string][]string{
	"RunPodSandbox": {"config.linux.security_context.namespace_options.userns_options"},
	"CreateContainer": {
		"config.linux.security_context.namespace_options.userns_options",
		"config.linux.security_context.capabilities.add_ambient_capabilities",
		"config.linux.resources.hugepage_limits",
		"config.mounts.image", "config.mounts.mount_options", "config.mounts.uidMappings", "config.mounts.gidMappings", "config.CDI_devices",
	},
	"UpdateContainerResources": {"linux.hugepage_limits"},
	"PullImage":                nil,
}

// notDocker are fields of which Docker is not told, and why; "" where the code does what they say that all engines
// share.
var notDocker = map[string]string{
	"RunPodSandbox.runtime_handler":                 "",
	"RunPodSandbox.config.dns_config.*":             "",
	"RunPodSandbox.config.port_mappings.*":          "",
	"RunPodSandbox.config.log_directory":            "",
	"RunPodSandbox.config.linux.overhead.*":         "",
	"RunPodSandbox.config.linux.resources.*":        "", // of a cgroup that is ours, where the client names none
	"RunPodSandbox.config.linux.security_context.*": "the pause container needs no more than Docker's defaults",
	"CreateContainer.sandbox_config.log_directory":  "",
	"CreateContainer.config.image.*":                "",
	"UpdateContainerResources.linux.oom_score_adj":  "processes that run keep theirs",
	"UpdateContainerResources.linux.unified":        "", // files, but those that Docker knows limits for
	"PullImage.auth.auth":                           "", // user and password come before it
	"PullImage.image.annotations":                   "Docker chooses by the platform alone",
	"UpdateContainerResources.container_id":         "",
	"PullImage.image.runtime_handler":               "",
	"PullImage.sandbox_config.metadata.uid":         "",
}

// onDocker says for every field of r's request what becomes of it on each Docker Engine; nil where
// engines have no say.
func onDocker(t *testing.T, r request, native map[string]string) map[string]string {
	t.Helper()
	if _, ok := unsaid[r.method]; !ok {
		return nil
	}
	cells := map[string]string{}
	all := dockerds(t)
	for _, d := range all {
		for name, fate := range d.fatesOf(t, r) {
			switch old, seen := cells[name]; {
			case !seen:
				cells[name] = fate
			case old != fate && fate == taken:
				cells[name] = old + " by " + all[0].version
			case old != fate && fate != dropped && native[name] != dropped:
				t.Errorf("%s of %s: %q on %s and %q on %s", name, r.method, old, all[0].version, fate, d.version)
			}
		}
	}
	for name, fate := range cells {
		if native[name] == dropped || native[name] == fate {
			cells[name] = taken
			continue
		}
		if fate != dropped || native[name] != taken { // what is malformed does not come to an engine
			continue
		}
		why, ok := r.reasonIn(notDocker, name)
		switch {
		case !ok:
			t.Errorf("%s: %s is dropped silently on Docker", r.method, name)
		case why == "":
			cells[name] = taken
		default:
			cells[name] = "not applicable: " + why
		}
	}
	return cells
}

// dockerCell is a field's cell in the column of Docker.
func dockerCell(fate string) string {
	if fate == taken || fate == dropped {
		return "the same"
	}
	return fate
}

// rpcOnDocker is an RPC's cell in the column of Docker: what needs an optional power of engines may be refused.
func rpcOnDocker(name string) string {
	_, checkpoints := any((*docker.Engine)(nil)).(engine.Checkpointer)
	if needs := []string{"CheckpointContainer", "CheckpointPod", "RestorePod"}; slices.Contains(needs, name) && !checkpoints {
		return refusal(codes.Unimplemented)
	}
	return "the same"
}

// reasonIn finds a field below its method's name, or below a prefix of it that ends in .*
func (r request) reasonIn(list map[string]string, field string) (string, bool) {
	for name, why := range list {
		prefix, ok := strings.CutSuffix(name, "*")
		if full := r.method + "." + field; name == full || ok && strings.HasPrefix(full, prefix) {
			return why, true
		}
	}
	return "", false
}

// fatesOf is as the function of that name, of what Docker is asked for.
func (d *dockerd) fatesOf(t *testing.T, r request) map[string]string {
	t.Helper()
	full := onThisNode(t, r.base)
	base := proto.Clone(full)
	for _, field := range unsaid[r.method] {
		cut(base.ProtoReflect(), strings.Split(field, "."))
	}
	dropEmptyMounts(base)
	fates := map[string]string{}
	for _, field := range unsaid[r.method] {
		with := proto.Clone(base)
		put(with.ProtoReflect(), full.ProtoReflect(), strings.Split(field, "."))
		_, err := d.said(t, with)
		switch code := status.Code(cri.ToStatus(err)); {
		case err == nil:
			base = with
			continue
		case code != codes.Unimplemented || !names(err, field):
			t.Errorf("%s with %s: %v; want it done or refused by its name", r.method, field, err)
		}
		walk(full.ProtoReflect(), nil, func(p fieldPath) {
			if strings.HasPrefix(p.String(), field) {
				fates[p.String()] = refusal(codes.Unimplemented)
			}
		})
	}
	want, err := d.said(t, base)
	if err != nil {
		t.Fatalf("the request that is to be changed is refused by %s: %v", d.version, err)
	}
	walk(base.ProtoReflect(), nil, func(p fieldPath) {
		name, leaf := p.String(), p[len(p)-1].field
		if fates[name] == refusal(codes.Unimplemented) {
			return
		}
		if _, ok := fates[name]; !ok {
			fates[name] = dropped
		}
		for i := range alternatives(leaf) {
			req := proto.Clone(base)
			change(p.parent(req.ProtoReflect()), leaf, i)
			got, err := d.said(t, req)
			switch code := status.Code(cri.ToStatus(err)); {
			case code == codes.Unimplemented && names(err, name):
				fates[name] = refusal(code)
				return
			case err == nil && got != want, err != nil && !errors.Is(err, errBefore):
				fates[name] = taken
			}
		}
	})
	return fates
}

// names says whether an error names the last part of a field's path.
func names(err error, field string) bool {
	return strings.Contains(err.Error(), field[strings.LastIndex(field, ".")+1:])
}

// onThisNode names files that exist, which an engine looks at.
func onThisNode(t *testing.T, base proto.Message) proto.Message {
	t.Helper()
	req := proto.Clone(base)
	r, ok := req.(*runtime.CreateContainerRequest)
	if !ok {
		return req
	}
	profile := t.TempDir() + "/profile.json"
	if err := os.WriteFile(profile, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Config.Mounts[0].HostPath = t.TempDir()
	r.Config.Linux.SecurityContext.Seccomp.LocalhostRef = profile
	return r
}

func dropEmptyMounts(req proto.Message) {
	if r, ok := req.(*runtime.CreateContainerRequest); ok {
		r.Config.Mounts = slices.DeleteFunc(r.Config.Mounts, func(m *runtime.Mount) bool { return m.HostPath == "" && m.Image == nil })
	}
}

// cut takes a field out of m, in every element of the lists on the way to it.
func cut(m protoreflect.Message, path []string) {
	f := m.Descriptor().Fields().ByName(protoreflect.Name(path[0]))
	switch {
	case len(path) == 1:
		m.Clear(f)
	case f.IsList():
		for i := range m.Get(f).List().Len() {
			cut(m.Get(f).List().Get(i).Message(), path[1:])
		}
	default:
		cut(m.Mutable(f).Message(), path[1:])
	}
}

// put sets a field to what it is in full. Elements of a list that m lacks come as they are.
func put(m, full protoreflect.Message, path []string) {
	f := m.Descriptor().Fields().ByName(protoreflect.Name(path[0]))
	switch {
	case len(path) == 1 && full.Has(f):
		m.Set(f, proto.Clone(full.Interface()).ProtoReflect().Get(f))
	case len(path) == 1:
	case f.IsList():
		list, from := m.Mutable(f).List(), full.Get(f).List()
		for i := range from.Len() {
			if i >= list.Len() {
				list.Append(protoreflect.ValueOfMessage(proto.Clone(from.Get(i).Message().Interface()).ProtoReflect()))
				continue
			}
			put(list.Get(i).Message(), from.Get(i).Message(), path[1:])
		}
	default:
		put(m.Mutable(f).Message(), full.Get(f).Message(), path[1:])
	}
}
