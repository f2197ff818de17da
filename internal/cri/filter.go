package cri

import (
	"runtime"
	"slices"
	"strings"

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

// mapped converts all items, some at a time, and keeps their order. What convert leaves nil is left out.
func mapped[T any, M any](items []T, convert func(T) (*M, error)) ([]*M, error) {
	all := make([]*M, len(items))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, item := range items {
		g.Go(func() (err error) {
			all[i], err = convert(item)
			return err
		})
	}
	if err := g.Wait(); err != nil {
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
