package lifecycle

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

// index finds entries by key, by id and by unambiguous prefix of an id.
type index struct {
	mu         sync.RWMutex
	pods       map[pod.Key]*podEntry                   // guarded by mu
	containers map[pod.Key]*containerEntry             // guarded by mu
	byPod      map[pod.Key]map[pod.Key]*containerEntry // guarded by mu
	podNames   map[pod.Metadata][]*podEntry            // guarded by mu; in the order in which they were added
	podIDs     map[string]*podEntry                    // guarded by mu; once the engine gave an id
	ctrIDs     map[string]*containerEntry              // guarded by mu; once the engine gave an id
	cgroups    cgroupUsers                             // guarded by mu
	// podOrder and ctrOrder are what allPods and allContainers returned last, nil since an entry was added
	// or removed. They are replaced, never changed.
	podOrder atomic.Pointer[[]*podEntry]
	ctrOrder atomic.Pointer[[]*containerEntry]
}

func newIndex() *index {
	return &index{
		pods: make(map[pod.Key]*podEntry), podIDs: make(map[string]*podEntry), podNames: make(map[pod.Metadata][]*podEntry),
		containers: make(map[pod.Key]*containerEntry), ctrIDs: make(map[string]*containerEntry),
		byPod: make(map[pod.Key]map[pod.Key]*containerEntry), cgroups: newCgroupUsers(),
	}
}

// addPod adds an entry, or makes one known under the id and the cgroup that it was given since.
func (x *index) addPod(p *podEntry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.podOrder.Store(nil)
	if name := p.name(); x.pods[p.key] == nil {
		x.podNames[name] = append(x.podNames[name], p)
	}
	x.pods[p.key] = p
	if id := p.id(); id != "" {
		x.podIDs[id] = p
	}
	x.cgroups.place(p.key, p.now.Load())
}

func (x *index) removePod(p *podEntry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.podOrder.Store(nil)
	delete(x.pods, p.key)
	name := p.name()
	if x.podNames[name] = slices.DeleteFunc(x.podNames[name], func(e *podEntry) bool { return e == p }); len(x.podNames[name]) == 0 {
		delete(x.podNames, name)
	}
	delete(x.byPod, p.key)
	delete(x.podIDs, p.id())
	x.cgroups.remove(p.key)
}

// addContainer adds an entry, or makes one known under the id that it was given since.
func (x *index) addContainer(c *containerEntry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ctrOrder.Store(nil)
	x.containers[c.key] = c
	if x.byPod[c.pod.key] == nil {
		x.byPod[c.pod.key] = make(map[pod.Key]*containerEntry)
	}
	x.byPod[c.pod.key][c.key] = c
	if id := c.id(); id != "" {
		x.ctrIDs[id] = c
	}
}

func (x *index) removeContainer(c *containerEntry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ctrOrder.Store(nil)
	delete(x.containers, c.key)
	delete(x.byPod[c.pod.key], c.key)
	delete(x.ctrIDs, c.id())
}

// pod finds a sandbox by id or prefix, also one that no list shows.
func (x *index) pod(id string) (*podEntry, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return find("pod sandbox", id, x.podIDs)
}

// container finds a container by id or prefix, also one that no list shows.
func (x *index) container(id string) (*containerEntry, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return find("container", id, x.ctrIDs)
}

func find[E any](noun, id string, ids map[string]E) (E, error) {
	var zero E
	if id == "" {
		return zero, fmt.Errorf("%s without an id: %w", noun, errdefs.ErrInvalidArgument)
	}
	if e, ok := ids[id]; ok {
		return e, nil
	}
	found, n := zero, 0
	for full, e := range ids {
		if strings.HasPrefix(full, id) {
			found = e
			n++
		}
	}
	switch n {
	case 1:
		return found, nil
	case 0:
		return zero, fmt.Errorf("%s %s: %w", noun, id, errdefs.ErrNotFound)
	}
	return zero, fmt.Errorf("%s id %s is ambiguous: %d begin so: %w", noun, id, n, errdefs.ErrInvalidArgument)
}

func (x *index) podByKey(key pod.Key) *podEntry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.pods[key]
}

func (x *index) containerByKey(key pod.Key) *containerEntry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.containers[key]
}

// podsNamed returns the entries of one attempt of a pod, as the client names it, in the order in which they were added.
func (x *index) podsNamed(name pod.Metadata) []*podEntry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Clone(x.podNames[name])
}

// sharesCgroup says whether another pod's sandbox has the cgroup of sb, or one below it.
func (x *index) sharesCgroup(sb *pod.Sandbox) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.cgroups.shared(sb.CgroupPath, sb.Spec.Metadata.UID)
}

// allPods returns every entry, oldest first.
func (x *index) allPods() []*podEntry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return inOrder(&x.podOrder, x.pods, func(a, b *podEntry) int {
		return cmp.Or(a.now.Load().CreatedAt.Compare(b.now.Load().CreatedAt), cmp.Compare(a.key, b.key))
	})
}

// allContainers returns every entry, oldest first.
func (x *index) allContainers() []*containerEntry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return inOrder(&x.ctrOrder, x.containers, older)
}

// inOrder returns all entries in order: those of last, unless a time of theirs has changed since. The index is
// locked.
func inOrder[E any](last *atomic.Pointer[[]E], all map[pod.Key]E, compare func(a, b E) int) []E {
	before := last.Load()
	if before != nil && slices.IsSortedFunc(*before, compare) {
		return *before
	}
	now := slices.SortedFunc(maps.Values(all), compare)
	last.Store(&now)
	return now
}

// containersOf returns the entries of one pod, oldest first.
func (x *index) containersOf(key pod.Key) []*containerEntry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return sorted(x.byPod[key])
}

func sorted(m map[pod.Key]*containerEntry) []*containerEntry {
	all := make([]*containerEntry, 0, len(m))
	for _, c := range m {
		all = append(all, c)
	}
	slices.SortFunc(all, older)
	return all
}

func older(a, b *containerEntry) int {
	return cmp.Or(a.now.Load().CreatedAt.Compare(b.now.Load().CreatedAt), cmp.Compare(a.key, b.key))
}
