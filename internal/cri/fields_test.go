package cri_test

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Nothing that a client says is dropped silently: for every field of a request, and of the messages
// in it, a change of its value changes what the backend gets, or is refused by an error that names
// the field, or is listed here with the reason why it changes nothing.

func TestEveryFieldOfRunPodSandbox(t *testing.T) {
	ignored := map[string]string{
		"config.linux.security_context.seccomp_profile_path": "seccomp, its successor, is set",
	}
	eachField(t, fullRunPodSandbox(), ignored, func(req proto.Message) (any, error) {
		m := &memory{}
		_, err := service(m).RunPodSandbox(t.Context(), req.(*runtime.RunPodSandboxRequest))
		return m.pods, err
	})
}

func TestEveryFieldOfCreateContainer(t *testing.T) {
	ignored := map[string]string{
		"config.image.annotations":     "they choose an image when it is pulled",
		"config.image.runtime_handler": "the sandbox's handler runs the container",
		"config.image.image_ref":       "for image volumes; a container's image is named by image",

		"config.mounts.image.annotations":          "they choose an image when it is pulled",
		"config.mounts.image.runtime_handler":      "the sandbox's handler mounts the image",
		"config.mounts.image.image_ref":            "the image's id is in image",
		"config.mounts.image.user_specified_image": "the image's id is in image",

		"config.linux.security_context.seccomp_profile_path": "seccomp, its successor, is set",
		"config.linux.security_context.apparmor_profile":     "apparmor, its successor, is set",

		"sandbox_config.*": "the sandbox keeps what RunPodSandbox said",
	}
	eachField(t, fullCreateContainer(), ignored, func(req proto.Message) (any, error) {
		m := &memory{}
		_, err := service(m).CreateContainer(t.Context(), req.(*runtime.CreateContainerRequest))
		return m.containers, err
	})
}

func TestEveryFieldOfUpdateContainerResources(t *testing.T) {
	req := &runtime.UpdateContainerResourcesRequest{ContainerId: "container0", Linux: fullResources()}
	eachField(t, req, nil, func(req proto.Message) (any, error) {
		m := &memory{}
		_, err := service(m).UpdateContainerResources(t.Context(), req.(*runtime.UpdateContainerResourcesRequest))
		if m.update == nil {
			return nil, err
		}
		return []any{m.updated, m.update}, nil
	})
}

func TestEveryFieldOfPullImage(t *testing.T) {
	ignored := map[string]string{
		"image.user_specified_image": "for CreateContainer",
		"image.image_ref":            "for image volumes",
		"sandbox_config.*":           "only the UID tells where the sandbox is",
	}
	req := &runtime.PullImageRequest{
		Image: &runtime.ImageSpec{Image: "example.org/app:1", Annotations: map[string]string{"a": "b"}},
		Auth: &runtime.AuthConfig{
			Username: "u", Password: "p", Auth: "a", ServerAddress: "s", IdentityToken: "i", RegistryToken: "r",
		},
		SandboxConfig: sandboxConfig(),
	}
	eachField(t, req, ignored, func(req proto.Message) (any, error) {
		m := &memory{}
		_, err := service(m).PullImage(t.Context(), req.(*runtime.PullImageRequest))
		if m.pulled == nil {
			return nil, err
		}
		return []any{m.pulled.Ref, m.pulled.Auth, m.pulled.Annotations, m.pulledBy}, err
	})
}

// eachField holds the rule for every field below base, which sets every message and has an element
// in every list.
func eachField(t *testing.T, base proto.Message, ignored map[string]string, call func(proto.Message) (any, error)) {
	t.Helper()
	want := outcome(t, base, call)
	handled := make(map[string]bool)
	walk(base.ProtoReflect(), nil, func(p fieldPath) {
		name := p.String()
		handled[name] = handled[name] || changes(t, base, p, want, call)
	})
	for name, ok := range handled {
		_, listed := ignored[name]
		if !listed && strings.HasPrefix(name, "sandbox_config.") {
			_, listed = ignored["sandbox_config.*"]
		}
		if !ok && !listed {
			t.Errorf("%s is dropped silently", name)
		}
		if _, exact := ignored[name]; exact && ok {
			t.Errorf("%s is not ignored: take it off the list", name)
		}
	}
	for name := range ignored {
		if _, ok := handled[name]; !ok && !strings.HasSuffix(name, "*") {
			t.Errorf("%s is on the list but not in the request", name)
		}
	}
}

func outcome(t *testing.T, req proto.Message, call func(proto.Message) (any, error)) string {
	t.Helper()
	got, err := call(req)
	if err != nil {
		t.Fatalf("the request that is to be changed is refused: %v", err)
	}
	b, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// changes says whether some other value of the field is seen by the backend or refused by name.
func changes(t *testing.T, base proto.Message, p fieldPath, want string, call func(proto.Message) (any, error)) bool {
	t.Helper()
	leaf := p[len(p)-1].field
	for i := range alternatives(leaf) {
		req := proto.Clone(base)
		parent := p.parent(req.ProtoReflect())
		change(parent, leaf, i)
		got, err := call(req)
		if err != nil {
			if strings.Contains(err.Error(), string(leaf.Name())) {
				return true
			}
			continue
		}
		b, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		if string(b) != want {
			return true
		}
	}
	return false
}

// step is a field, and the index of the element where the field is a list of messages.
type step struct {
	field protoreflect.FieldDescriptor
	index int
}

type fieldPath []step

func (p fieldPath) String() string {
	names := make([]string, len(p))
	for i, s := range p {
		names[i] = string(s.field.Name())
	}
	return strings.Join(names, ".")
}

// parent is the message that holds the last field of p.
func (p fieldPath) parent(m protoreflect.Message) protoreflect.Message {
	for _, s := range p[:len(p)-1] {
		v := m.Mutable(s.field)
		if s.field.IsList() {
			m = v.List().Get(s.index).Message()
		} else {
			m = v.Message()
		}
	}
	return m
}

// walk visits every field that holds no further message, and every message that is not set.
func walk(m protoreflect.Message, at fieldPath, visit func(fieldPath)) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		here := append(append(fieldPath{}, at...), step{field: f})
		switch {
		case f.IsMap() || f.Message() == nil || !m.Has(f):
			visit(here)
		case f.IsList():
			for j := range m.Get(f).List().Len() {
				here[len(here)-1].index = j
				walk(m.Get(f).List().Get(j).Message(), here, visit)
			}
		default:
			walk(m.Get(f).Message(), here, visit)
		}
	}
}

// alternatives is how many other values are tried.
func alternatives(f protoreflect.FieldDescriptor) int {
	if f.Kind() == protoreflect.EnumKind {
		return f.Enum().Values().Len()
	}
	return 1
}

func change(m protoreflect.Message, f protoreflect.FieldDescriptor, i int) {
	switch {
	case f.IsMap():
		m.Mutable(f).Map().Set(protoreflect.ValueOfString("added.key").MapKey(), protoreflect.ValueOfString("x"))
	case f.IsList():
		l := m.Mutable(f).List()
		l.Append(other(f, l.NewElement(), i))
	case f.Message() != nil:
		m.Mutable(f)
	default:
		m.Set(f, other(f, m.Get(f), i))
	}
}

func other(f protoreflect.FieldDescriptor, old protoreflect.Value, i int) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(!old.Bool())
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(f.Enum().Values().Get(i).Number())
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(old.Int()) + 1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(old.Int() + 1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(old.Uint()) + 1)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(old.Uint() + 1)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(append([]byte("x"), old.Bytes()...))
	case protoreflect.MessageKind:
		return old
	}
	return protoreflect.ValueOfString(old.String() + "x")
}
