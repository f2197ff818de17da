package image

import (
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

// A writable layer is walked again when its size is asked for and the last walk is UsageAge ago, or
// walkShare times as long as it took: walks never take more than a twentieth of one disk's time.
const (
	walkShare = 20
	// firstWait is how long the first question about a layer waits for its walk: a new one is small.
	firstWait = 20 * time.Millisecond
)

// LayerUsage tells what the writable layer of a prepared container occupies, with the time when it
// was measured: now, where its file system has project quotas, which count the directories that overlayfs
// works in too. Else it never waits long for the disk: an answer that is too old is given once more while
// a new one is measured, and nil where there is none yet. A key that is not prepared is
// errdefs.ErrNotFound.
func (s *Store) LayerUsage(key string) (*pod.Usage, error) {
	s.mu.Lock()
	prepared := s.containers[key] != nil
	s.mu.Unlock()
	if !prepared {
		return nil, fmt.Errorf("root file system of %s: %w", key, errdefs.ErrNotFound)
	}
	m := s.projects.usage(key)
	if m == nil {
		m = s.writable.ask(key)
	}
	if m == nil {
		return nil, nil
	}
	return &pod.Usage{Mountpoint: s.dir(containersDir), At: m.at, Bytes: m.bytes, Inodes: m.inodes}, nil
}

func (s *Store) measureWritable(key string) size {
	return measureTree(filepath.Join(s.containerDir(key), "upper"))
}

// walks remembers the sizes of trees and measures them one at a time, when somebody asks.
type walks struct {
	measure func(key string) size
	age     time.Duration

	mu      sync.Mutex
	trees   map[string]*layerTree // guarded by mu
	queue   []string              // to be measured; guarded by mu
	walking bool                  // guarded by mu
}

// layerTree is one tree's last size and what becomes of the next.
type layerTree struct {
	known  *measured
	took   time.Duration
	queued bool
	first  chan struct{} // closed when there is a size
}

type measured struct {
	size
	at time.Time
}

func newWalks(age time.Duration, measure func(key string) size) *walks {
	return &walks{measure: measure, age: age, trees: make(map[string]*layerTree)}
}

// ask returns the last size, nil when there is none yet.
func (w *walks) ask(key string) *measured {
	w.mu.Lock()
	t := w.trees[key]
	if t == nil {
		t = &layerTree{first: make(chan struct{})}
		w.trees[key] = t
	}
	busy := w.walking
	if !t.queued && (t.known == nil || time.Since(t.known.at) > max(w.age, walkShare*t.took)) {
		t.queued = true
		w.queue = append(w.queue, key)
		if !w.walking {
			w.walking = true
			go w.walk()
		}
	}
	known := t.known
	w.mu.Unlock()
	if known != nil || busy { // behind another walk it could take any time
		return known
	}
	timer := time.NewTimer(firstWait)
	defer timer.Stop()
	select {
	case <-t.first:
	case <-timer.C:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return t.known
}

// walk measures what is queued and ends.
func (w *walks) walk() {
	for {
		w.mu.Lock()
		if len(w.queue) == 0 {
			w.walking = false
			w.mu.Unlock()
			return
		}
		key := w.queue[0]
		w.queue = w.queue[1:]
		t := w.trees[key]
		w.mu.Unlock()
		if t == nil { // forgotten meanwhile
			continue
		}
		began := time.Now()
		sz := w.measure(key)
		w.mu.Lock()
		if t.known == nil {
			close(t.first)
		}
		t.known, t.took, t.queued = &measured{sz, time.Now()}, time.Since(began), false
		w.mu.Unlock()
	}
}

// forget drops what is known of a tree that is removed.
func (w *walks) forget(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.trees, key)
}
