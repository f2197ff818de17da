package cri_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"gantry/internal/cri"
)

// Nothing that a client says is dropped silently: for every field of a request, and of the messages
// in it, a change of its value changes what the backend gets or what is answered, or is refused by an
// error that names the field, or is listed with the reason why it changes nothing.
func TestEveryFieldOfEveryRequest(t *testing.T) {
	for _, r := range surveyed() {
		t.Run(r.method, func(t *testing.T) {
			fates := fatesOf(t, r)
			for name, fate := range fates {
				reason := r.reason(name)
				if fate == dropped && reason == "" {
					t.Errorf("%s is dropped silently", name)
				}
				if _, exact := r.ignored[name]; exact && fate != dropped {
					t.Errorf("%s is not ignored: take it off the list", name)
				}
			}
			for name := range r.ignored {
				if _, ok := fates[name]; !ok && !strings.HasSuffix(name, "*") {
					t.Errorf("%s is on the list but not in the request", name)
				}
			}
		})
	}
}

// The fates of a field, beside those of an error that names it.
const (
	dropped = ""
	taken   = "supported"
)

func refusal(code codes.Code) string { return "refused: " + code.String() }

// fatesOf tries other values of every field of r's request, which sets every message and has an
// element in every list. What some values are refused for does not count where others are taken.
func fatesOf(t *testing.T, r request) map[string]string {
	t.Helper()
	want, err := r.call(t, r.base)
	if err != nil {
		t.Fatalf("the request that is to be changed is refused: %v", err)
	}
	fates := make(map[string]string)
	walk(r.base.ProtoReflect(), nil, func(p fieldPath) {
		name, leaf := p.String(), p[len(p)-1].field
		if _, ok := fates[name]; !ok {
			fates[name] = dropped
		}
		for i := range alternatives(leaf) {
			req := proto.Clone(r.base)
			change(p.parent(req.ProtoReflect()), leaf, i)
			got, err := r.call(t, req)
			switch code := status.Code(cri.ToStatus(err)); {
			case err == nil && got != want, code == codes.NotFound:
				fates[name] = taken
			case err != nil && fates[name] == dropped && strings.Contains(err.Error(), string(leaf.Name())):
				fates[name] = refusal(code)
			}
		}
	})
	return fates
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

// alternatives is how many other values are tried; the last is none.
func alternatives(f protoreflect.FieldDescriptor) int {
	if f.Kind() == protoreflect.EnumKind {
		return f.Enum().Values().Len() + 1
	}
	return 2
}

func change(m protoreflect.Message, f protoreflect.FieldDescriptor, i int) {
	switch {
	case i == alternatives(f)-1:
		m.Clear(f)
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
