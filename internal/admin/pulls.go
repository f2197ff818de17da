package admin

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"gantry/internal/pod"
)

// Pull is a pull under way.
type Pull struct {
	Ref     string    `json:"ref"` // as the client wrote it
	Started time.Time `json:"started"`
	Layers  []Layer   `json:"layers"` // in the order in which they were first heard of
}

// Layer is how far one layer has come, in compressed bytes. Total is 0 where the registry did not say.
type Layer struct {
	Digest string `json:"digest"`
	Done   int64  `json:"done"`
	Total  int64  `json:"total"`
}

// Pulls knows the pulls under way. The zero value is ready.
type Pulls struct {
	mu  sync.Mutex
	all []*tracked // guarded by mu, and all that is in it
}

type tracked struct {
	ref     string
	started time.Time
	layers  []Layer
}

// Puller is the slice of the image backend that Pull watches.
type Puller interface {
	PullImage(ctx context.Context, podUID string, p *pod.Pull) (id string, err error)
}

// Pull pulls through next and shows the pull in List meanwhile.
func (p *Pulls) Pull(ctx context.Context, next Puller, podUID string, req *pod.Pull) (string, error) {
	t := &tracked{ref: req.Ref, started: time.Now()}
	p.mu.Lock()
	p.all = append(p.all, t)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.all = slices.DeleteFunc(p.all, func(x *tracked) bool { return x == t })
		p.mu.Unlock()
	}()
	seen := *req
	also := req.Progress
	seen.Progress = func(l pod.LayerProgress) {
		p.note(t, l)
		if also != nil {
			also(l)
		}
	}
	return next.PullImage(ctx, podUID, &seen)
}

func (p *Pulls) note(t *tracked, l pod.LayerProgress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := Layer{Digest: l.Digest, Done: l.Done, Total: l.Total}
	i := slices.IndexFunc(t.layers, func(x Layer) bool { return x.Digest == l.Digest })
	if i < 0 {
		t.layers = append(t.layers, now)
		return
	}
	t.layers[i] = now
}

// List returns the pulls under way, the oldest first.
func (p *Pulls) List() []Pull {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Pull, 0, len(p.all))
	for _, t := range p.all {
		out = append(out, Pull{Ref: t.ref, Started: t.started, Layers: append([]Layer{}, t.layers...)})
	}
	slices.SortStableFunc(out, func(a, b Pull) int { return cmp.Compare(a.Started.UnixNano(), b.Started.UnixNano()) })
	return out
}
