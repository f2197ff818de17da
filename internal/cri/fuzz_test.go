package cri_test

import (
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Whatever a client sends is answered; what is accepted can be read back.

func FuzzRunPodSandbox(f *testing.F) {
	addSeeds(f, fullRunPodSandbox())
	f.Fuzz(func(t *testing.T, b []byte) {
		var req runtime.RunPodSandboxRequest
		if proto.Unmarshal(b, &req) == nil {
			runAny(t, &req)
		}
	})
}

func FuzzCreateContainer(f *testing.F) {
	addSeeds(f, fullCreateContainer())
	f.Fuzz(func(t *testing.T, b []byte) {
		var req runtime.CreateContainerRequest
		if proto.Unmarshal(b, &req) == nil {
			createAny(t, &req)
		}
	})
}

func addSeeds(f *testing.F, m proto.Message) {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
}

// Random messages go deeper than random bytes: most of them decode.
func TestRandomRequests(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same requests every time
	for range 2000 {
		run := fullRunPodSandbox()
		scramble(rnd, run.ProtoReflect())
		runAny(t, run)
		create := fullCreateContainer()
		scramble(rnd, create.ProtoReflect())
		createAny(t, create)
	}
}

func runAny(t *testing.T, req *runtime.RunPodSandboxRequest) {
	m := &memory{}
	s := service(m)
	res, err := s.RunPodSandbox(t.Context(), req)
	if err != nil {
		return
	}
	if _, err := s.PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: res.GetPodSandboxId(), Verbose: true}); err != nil {
		t.Errorf("%v: %v", req, err)
	}
}

func createAny(t *testing.T, req *runtime.CreateContainerRequest) {
	m := &memory{}
	s := service(m)
	res, err := s.CreateContainer(t.Context(), req)
	if err != nil {
		return
	}
	if _, err := s.ContainerStatus(t.Context(), &runtime.ContainerStatusRequest{ContainerId: res.GetContainerId(), Verbose: true}); err != nil {
		t.Errorf("%v: %v", req, err)
	}
}

// scramble changes some fields of m: unset, another value, an element more or one that is empty.
func scramble(rnd *rand.Rand, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		switch {
		case rnd.IntN(20) == 0:
			m.Clear(f)
		case f.IsMap() || f.Message() == nil:
			if rnd.IntN(20) == 0 {
				change(m, f, rnd.IntN(alternatives(f)))
			}
		case f.IsList():
			l := m.Mutable(f).List()
			if rnd.IntN(10) == 0 {
				l.Append(l.NewElement())
			}
			for j := range l.Len() {
				scramble(rnd, l.Get(j).Message())
			}
		case m.Has(f) || rnd.IntN(10) == 0:
			scramble(rnd, m.Mutable(f).Message())
		}
	}
}
