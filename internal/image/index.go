package image

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// index is the store's memory of its images; Store.mu guards it.
type index struct {
	byID   map[string]*record
	byName map[string]string // tag or digest to id
}

func newIndex() index {
	return index{byID: make(map[string]*record), byName: make(map[string]string)}
}

func (x *index) put(r *record) {
	x.drop(r.ID)
	x.byID[r.ID] = r
	for _, n := range r.Tags {
		x.byName[n] = r.ID
	}
	for _, n := range r.Digests {
		x.byName[n] = r.ID
	}
}

func (x *index) drop(id string) {
	delete(x.byID, id)
	maps.DeleteFunc(x.byName, func(_, of string) bool { return of == id })
}

// find resolves an id, a name or an unambiguous beginning of an id.
func (x *index) find(ref string) (*record, error) {
	prefix, isID := idPrefix(ref)
	if isID {
		if r := x.byID["sha256:"+prefix]; r != nil {
			return r, nil
		}
	}
	if named, err := Normalize(ref); err == nil {
		if r := x.byID[x.byName[named.String()]]; r != nil {
			return r, nil
		}
	} else if !isID {
		return nil, err
	}
	if isID {
		return x.findPrefix(prefix)
	}
	return nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
}

func (x *index) findPrefix(prefix string) (*record, error) {
	var found *record
	for id, r := range x.byID {
		if !strings.HasPrefix(id, "sha256:"+prefix) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("image id %q begins more than one image: %w", prefix, errdefs.ErrInvalidArgument)
		}
		found = r
	}
	if found == nil {
		return nil, fmt.Errorf("image %q: %w", prefix, errdefs.ErrNotFound)
	}
	return found, nil
}

// withTarget returns the image that was pulled as the manifest or index with this digest.
func (x *index) withTarget(target string) *record {
	for name, id := range x.byName {
		if strings.HasSuffix(name, "@"+target) {
			return x.byID[id]
		}
	}
	return nil
}

func (x *index) all() []*record {
	return slices.SortedFunc(maps.Values(x.byID), func(a, b *record) int { return strings.Compare(a.ID, b.ID) })
}
