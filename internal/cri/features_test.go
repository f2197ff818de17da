package cri_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// features is the document that TestFeatures holds against the code.
const features = "../../docs/features.md"

const featuresHead = `# What gantry does of the CRI

Every RPC of cri-api v0.37, every field of every request and of every answer, on the native engine and on Docker
Engine (what plugins and annotations may ask of Docker beside these fields: [docker-fields.md](docker-fields.md)). The
tests write this page (` + "`go test ./internal/cri -run TestFeatures -update`" + `): they give each field another value and look
at what becomes of it (on Docker: at what Docker is asked for), and fail where nothing does without a reason. The same
holds under ` + "`runtime.v1alpha2`" + `. Where a table has one column the engine has no say.

- **supported**: another value leads to another pod, container or answer; values out of range are
  InvalidArgument.
- **checked**: supported; a value that is malformed or contradicts the fields beside it is InvalidArgument.
- **refused**: the call fails with that gRPC code and the field's name.
- **not applicable**: the field of a request changes nothing, for the reason that stands there.
- **empty**: the field of an answer has its zero value always, for that reason.
`

// nodeNotes say what the node must have for a field, by the end of the field's name.
var nodeNotes = map[string]string{
	"selinux_options.user":          "FailedPrecondition where the kernel has no SELinux, but for spc_t",
	"selinux_options.role":          "FailedPrecondition where the kernel has no SELinux, but for spc_t",
	"selinux_options.type":          "FailedPrecondition where the kernel has no SELinux, but for spc_t",
	"selinux_options.level":         "FailedPrecondition where the kernel has no SELinux, but for spc_t",
	"apparmor.profile_type":         "a local profile is InvalidArgument where the kernel has no AppArmor",
	"apparmor_profile":              "a local profile is InvalidArgument where the kernel has no AppArmor",
	"resources.unified":             "InvalidArgument on cgroup v1",
	"mounts.recursive_read_only":    "refused where the runtime does not have it, which Status tells",
	"mounts.uidMappings.host_id":    "those of the pod, InvalidArgument else",
	"mounts.gidMappings.host_id":    "those of the pod, InvalidArgument else",
	"namespace_options.network":     "POD and NODE",
	"userns_options.mode":           "where Status tells user_namespaces",
	"userns_options.uids.host_id":   "FailedPrecondition for ids that another pod has",
	"linux.resources.oom_score_adj": "not below the server's own",
	"location":                      "FailedPrecondition where the runtime or CRIU has no checkpoints, which the error names",
	"output_path":                   "FailedPrecondition where the runtime or CRIU has no checkpoints, which the error names",
	"checkpoint_path":               "FailedPrecondition where the runtime or CRIU has no checkpoints, which the error names",
}

// TestFeatures holds docs/features.md against what the code does.
func TestFeatures(t *testing.T) {
	surveys := map[string]request{}
	for _, r := range surveyed() {
		surveys[r.method] = r
	}
	var rpcs, fields strings.Builder
	for _, m := range methods(t) {
		name := string(m.Name())
		state, built := rpcState(t, name, m)
		fmt.Fprintf(&rpcs, "| %s | %s | %s |\n", name, state, rpcOnDocker(name))
		if !built {
			continue
		}
		var rows []string
		if r, ok := surveys[name]; ok {
			rows = requestRows(t, r)
		} else if m.Input().Fields().Len() > 0 {
			t.Errorf("the request of %s is not surveyed", name)
		}
		answers := answerRows(t, m)
		head := "| field | |\n|---|---|"
		if _, ok := unsaid[name]; ok {
			head = "| field | native | Docker |\n|---|---|---|"
			for i := range answers {
				answers[i] += " the same |"
			}
		}
		if rows = append(rows, answers...); len(rows) > 0 {
			fmt.Fprintf(&fields, "\n### %s\n\n%s\n%s\n", name, head, strings.Join(rows, "\n"))
		}
	}
	got := featuresHead + "\n## RPCs\n\n| RPC | native | Docker |\n|---|---|---|\n" + rpcs.String() +
		"\n## Fields\n\nFields of the answer are in italics.\n" + fields.String()
	if *update {
		if err := os.WriteFile(features, []byte(got), 0o644); err != nil { //nolint:gosec // a document
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(features)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s is not what the code does; run this test with -update", features)
	}
}

// rpcState calls a method with an empty request: one that is not built refuses it as such.
func rpcState(t *testing.T, name string, m protoreflect.MethodDescriptor) (state string, built bool) {
	t.Helper()
	_, err := ask(t, richNode(t), name, dynamicpb.NewMessage(m.Input()))
	code := status.Code(cri.ToStatus(err))
	if code == codes.Unimplemented {
		return refusal(code), false
	}
	if m.IsStreamingServer() {
		return "supported, streamed", true
	}
	return "supported", true
}

func requestRows(t *testing.T, r request) []string {
	t.Helper()
	fates := fatesOf(t, r)
	docker := onDocker(t, r, fates)
	shown := map[string]string{}
	for name, fate := range fates {
		field := name
		if hasChildren(fates, name) {
			continue
		}
		if fate == refusal(codes.InvalidArgument) {
			fate = "checked"
		}
		if r.method == "RunPodSandbox" && strings.HasSuffix(name, ".target_id") {
			fate = refusal(codes.InvalidArgument) + ", it is for containers"
		}
		if fate == dropped {
			fate = "not applicable: " + r.reason(name)
			for prefix := range r.ignored {
				if strings.HasSuffix(prefix, ".*") && strings.HasPrefix(name, strings.TrimSuffix(prefix, "*")) {
					name = prefix
				}
			}
		}
		for end, note := range nodeNotes {
			if (fate == taken || fate == "checked") && strings.HasSuffix(name, end) {
				fate += "; " + note
			}
		}
		if docker != nil {
			fate += " | " + dockerCell(docker[field])
		}
		shown[name] = fate
	}
	var rows []string
	for _, name := range slices.Sorted(maps.Keys(shown)) {
		rows = append(rows, fmt.Sprintf("| %s | %s |", name, shown[name]))
	}
	return rows
}

// hasChildren says whether a message is unset in one place and set, with rows for its fields, in another.
func hasChildren(fates map[string]string, name string) bool {
	for other := range fates {
		if strings.HasPrefix(other, name+".") {
			return true
		}
	}
	return false
}

// unfilled are fields of answers that stay empty, by the end of their names, and why.
var unfilled = map[string]string{
	"target_id":                    "for containers, whose namespaces no answer tells",
	"userns_options.mode":          "POD, which is zero",
	"uids.container_id":            "0: the ids of a pod begin there",
	"gids.container_id":            "0: the ids of a pod begin there",
	"uidMappings.container_id":     "0: the ids of a pod begin there",
	"gidMappings.container_id":     "0: the ids of a pod begin there",
	"image.annotations":            "they choose an image when it is pulled",
	"image.runtime_handler":        "the pod tells it",
	"image.image_ref":              "image_ref beside it tells it",
	"image.user_specified_image":   "the image's id is in image",
	"spec.annotations":             "they choose an image when it is pulled",
	"spec.runtime_handler":         "images are those of all engines together",
	"spec.image_ref":               "for image volumes",
	"spec.user_specified_image":    "an image has many names, which repo_tags tells",
	"windows":                      "Windows is another node",
	"user_namespaces_host_network": "false: a user namespace has no right over the node's network",
}

// answerRows says which fields of a method's answer are filled on a node that has everything.
func answerRows(t *testing.T, m protoreflect.MethodDescriptor) []string {
	t.Helper()
	name := string(m.Name())
	filled := map[string]bool{}
	for _, req := range asking(name, m) {
		answers, err := ask(t, richNode(t), name, req)
		if err != nil && len(answers) == 0 {
			t.Fatalf("%s: %v", name, err)
		}
		for _, a := range answers {
			collect(a.ProtoReflect(), "", filled)
		}
	}
	var rows []string
	eachLeaf(m.Output(), "", filled, func(path string) {
		if filled[path] {
			rows = append(rows, fmt.Sprintf("| *%s* | supported |", path))
			return
		}
		for end, why := range unfilled {
			if path == end || strings.HasSuffix(path, "."+end) {
				rows = append(rows, fmt.Sprintf("| *%s* | empty: %s |", path, why))
				return
			}
		}
		t.Errorf("%s: %s of the answer is never filled", name, path)
	})
	return rows
}

// asking are requests whose answers together show everything.
func asking(name string, m protoreflect.MethodDescriptor) []proto.Message {
	switch name {
	case "PodSandboxStatus":
		return []proto.Message{
			&runtime.PodSandboxStatusRequest{PodSandboxId: "aa11", Verbose: true}, &runtime.PodSandboxStatusRequest{PodSandboxId: "bb22"},
		}
	case "ContainerStatus":
		return []proto.Message{
			&runtime.ContainerStatusRequest{ContainerId: "c1", Verbose: true}, &runtime.ContainerStatusRequest{ContainerId: "c2"},
		}
	case "ImageStatus":
		return []proto.Message{
			&runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: "sha256:abc"}, Verbose: true},
			&runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: "example.org/app:2"}},
		}
	case "Status":
		return []proto.Message{&runtime.StatusRequest{Verbose: true}}
	}
	if !strings.HasPrefix(name, "List") && !strings.HasPrefix(name, "Stream") {
		for _, r := range surveyed() {
			if r.method == name {
				return []proto.Message{r.base}
			}
		}
	}
	return []proto.Message{dynamicpb.NewMessage(m.Input())}
}

// collect names the leaves that a message sets.
func collect(m protoreflect.Message, at string, into map[string]bool) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		path := join(at, f)
		into[path] = true
		switch {
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				collect(v.List().Get(i).Message(), path, into)
			}
		default:
			collect(v.Message(), path, into)
		}
		return true
	})
}

// eachLeaf visits the fields of a message's type, those of messages that are never set as one.
func eachLeaf(d protoreflect.MessageDescriptor, at string, filled map[string]bool, visit func(path string)) {
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		path := join(at, f)
		if f.IsMap() || f.Message() == nil || !filled[path] || strings.HasSuffix(string(f.Message().Name()), "Value") {
			visit(path)
			continue
		}
		eachLeaf(f.Message(), path, filled, visit)
	}
}

func join(at string, f protoreflect.FieldDescriptor) string {
	if at == "" {
		return string(f.Name())
	}
	return at + "." + string(f.Name())
}
