package holder

import (
	"maps"
	"time"

	"golang.org/x/sys/unix"
)

// An unclaimed child's end is remembered until the claim that may follow: for looseFor, longer than
// an OCI runtime may take from the start of a process to the claim, or until maxLoose others have
// ended, whichever is earlier. Orphans of containers in the node's PID namespace come here too, as
// many as they like.
const (
	looseFor = 10 * time.Minute
	maxLoose = 4096
)

type death struct {
	status unix.WaitStatus
	at     time.Time
}

// deaths are how unclaimed children ended, by pid, in two generations: the older one is forgotten as
// a whole, so that remembering costs the same however many there are.
type deaths struct {
	young, old map[int]death
	since      time.Time // when young began
}

func (d *deaths) add(pid int, x death) {
	if d.young == nil || len(d.young) >= maxLoose || x.at.Sub(d.since) > looseFor {
		d.old, d.young, d.since = d.young, map[int]death{}, x.at
	}
	d.young[pid] = x
}

// take returns how the process ended that last had pid, and forgets it.
func (d *deaths) take(pid int) (death, bool) {
	x, ok := d.young[pid]
	if !ok {
		x, ok = d.old[pid]
	}
	delete(d.young, pid)
	delete(d.old, pid)
	return x, ok
}

// all are those that are remembered.
func (d *deaths) all() map[int]death {
	all := maps.Clone(d.old)
	if all == nil {
		all = map[int]death{}
	}
	maps.Copy(all, d.young)
	return all
}
