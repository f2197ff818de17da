package docker

import (
	"regexp"
	"sync"

	"github.com/moby/moby/api/types/events"

	"gantry/internal/pod"
)

// imageEvents are after which an image may be gone, or be called by other names.
var imageEvents = []events.Action{
	events.ActionDelete, events.ActionImport, events.ActionLoad, events.ActionPull, events.ActionTag, events.ActionUnTag,
}

// imageMemory is what Docker said of images that were asked for by their whole ids, as long as its events are heard:
// one of an image ends it all. Docker reads an image's files anew for every question.
type imageMemory struct {
	mu         sync.Mutex
	heard      bool                  // Docker's events are; guarded by mu
	generation uint64                // how often what was known ended; guarded by mu
	byID       map[string]*pod.Image // guarded by mu
}

// wholeID matches what names one image for ever.
var wholeID = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// get returns a copy of what is known of an image, and the generation for put.
func (m *imageMemory) get(id string) (*pod.Image, uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if img := m.byID[id]; img != nil {
		known := *img
		return &known, m.generation
	}
	return nil, m.generation
}

// put remembers what Docker said, unless something happened to images since it was asked.
func (m *imageMemory) put(id string, img *pod.Image, generation uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.heard || generation != m.generation || id != img.ID || !wholeID.MatchString(id) {
		return
	}
	if m.byID == nil || len(m.byID) >= imagesMost {
		m.byID = make(map[string]*pod.Image)
	}
	known := *img
	m.byID[id] = &known
}

// forget ends what is known; heard says whether Docker's events are from now on.
func (m *imageMemory) forget(heard bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heard, m.byID = heard, nil
	m.generation++
}

// changed is forget where nothing is known of the events.
func (m *imageMemory) changed() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.byID = nil
	m.generation++
}
