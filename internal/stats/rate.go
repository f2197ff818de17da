package stats

import (
	"sync"
	"time"
)

const (
	// leastWindow is how far apart two readings of a rate are: of two clients that ask at once the
	// second gets the rate of the first.
	leastWindow = time.Second
	// mostWindow is when a reading is too old to say anything about now, and is forgotten.
	mostWindow = 10 * time.Minute
)

// rates remembers the last reading of every cgroup's CPU time.
type rates struct {
	mu       sync.Mutex
	readings map[string]reading // by cgroup; guarded by mu
	swept    time.Time          // when old readings were last forgotten; guarded by mu
}

type reading struct {
	at    time.Time
	usage time.Duration
	rate  *uint64 // of the window that ended at at
}

// of returns the nanoseconds of CPU a second that were used between the last two readings, and nil
// after the first.
func (r *rates) of(cgroup string, at time.Time, usage time.Duration) *uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, ok := r.readings[cgroup]
	window := at.Sub(last.at)
	switch {
	case !ok || window > mostWindow || usage < last.usage: // less: it is another cgroup under the same path
		last = reading{at: at, usage: usage}
	case window < leastWindow:
		return last.rate
	default:
		rate := uint64(float64(usage-last.usage) / window.Seconds())
		last = reading{at: at, usage: usage, rate: &rate}
	}
	r.readings[cgroup] = last
	r.sweep(at)
	return last.rate
}

func (r *rates) forget(cgroup string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.readings, cgroup)
}

func (r *rates) sweep(now time.Time) {
	if now.Sub(r.swept) < mostWindow {
		return
	}
	r.swept = now
	for cgroup, last := range r.readings {
		if now.Sub(last.at) > mostWindow {
			delete(r.readings, cgroup)
		}
	}
}
