package cri

import (
	"slices"
	"sync/atomic"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// answers remembers the last answers of a list and how they are encoded: a kubelet asks every second
// for lists that seldom change. What it lists are snapshots, which never change either, so that the
// same ones give the same answer.
type answers[T any, M proto.Message] struct {
	last [2]atomic.Pointer[answer[T, M]] // of the whole list, and of one that a filter has made shorter
}

type answer[T any, M proto.Message] struct {
	of      []*T
	message M
	encoded []byte
}

// give returns the answer that convert makes of items, or made of them before.
func (a *answers[T, M]) give(items []*T, filtered bool, convert func([]*T) M) M {
	last := &a.last[0]
	if filtered {
		last = &a.last[1]
	}
	if l := last.Load(); l != nil && slices.Equal(l.of, items) {
		return l.message
	}
	n := &answer[T, M]{of: items, message: convert(items)}
	var err error
	if n.encoded, err = proto.Marshal(n.message); err == nil { // else the codec says what is wrong
		last.Store(n)
	}
	return n.message
}

// encodingOf returns a message that give returned as it is encoded, nil if it is not known any more.
func (a *answers[T, M]) encodingOf(message M) []byte {
	for i := range a.last {
		if l := a.last[i].Load(); l != nil && any(l.message) == any(message) {
			return l.encoded
		}
	}
	return nil
}

// encoded is an answer that is encoded already, nil for all others.
func (s *Service) encoded(v any) []byte {
	switch m := v.(type) {
	case *runtime.ListContainersResponse:
		return s.containerLists.encodingOf(m)
	case *runtime.ListPodSandboxResponse:
		return s.podLists.encodingOf(m)
	}
	return nil
}

// poolable is the size of an answer up to which gRPC's own buffers fit it; above, it takes and clears a
// mebibyte.
const poolable = 32 << 10

// codec is gRPC's own for protobuf, except that it encodes no answer twice.
type codec struct {
	encoding.CodecV2
	service *Service
}

func newCodec(s *Service) codec {
	return codec{encoding.GetCodecV2(protocodec.Name), s}
}

// Marshal encodes an answer.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if encoded := c.service.encoded(v); encoded != nil {
		return mem.BufferSlice{mem.SliceBuffer(encoded)}, nil
	}
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	size := proto.Size(m)
	if size <= poolable {
		return c.CodecV2.Marshal(v)
	}
	data, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(make([]byte, 0, size), m)
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(data)}, nil
}
