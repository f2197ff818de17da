package cri

import (
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
)

// chunkBytes bounds one message of a Stream* list, well below MaxMessageSize.
const chunkBytes = 1 << 20

// matchID lets everything through an empty filter; else id is the one, or begins with it.
func matchID(filter, id string) bool { return strings.HasPrefix(id, filter) }

func matchLabels(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// mapped converts all items, as many at a time as there are CPUs, and keeps their order. What convert
// leaves nil is left out.
func mapped[T any, M any](items []T, convert func(T) (*M, error)) ([]*M, error) {
	all := make([]*M, len(items))
	var next atomic.Int64
	work := func() error {
		for {
			i := int(next.Add(1)) - 1
			if i >= len(items) {
				return nil
			}
			var err error
			if all[i], err = convert(items[i]); err != nil {
				next.Store(int64(len(items))) // the others need not go on
				return err
			}
		}
	}
	var g errgroup.Group
	for range min(runtime.GOMAXPROCS(0), len(items)) - 1 {
		g.Go(work)
	}
	if err := errors.Join(work(), g.Wait()); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(m *M) bool { return m == nil }), nil
}

// chunks hands items to send in order, each once, as many at a time as chunkBytes holds and at
// least one.
func chunks[M proto.Message](items []M, send func([]M) error) error {
	start, size := 0, 0
	for i, item := range items {
		n := proto.Size(item)
		if i > start && size+n > chunkBytes {
			if err := send(items[start:i]); err != nil {
				return err
			}
			start, size = i, 0
		}
		size += n
	}
	if start == len(items) {
		return nil
	}
	return send(items[start:])
}
