package cgroup

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// keepFor is how long files stay open for the next reading. Those who read again and again do so
	// every ten seconds (the kubelet, cAdvisor) to every minute (Prometheus).
	keepFor = time.Minute
	// keepMost bounds the descriptors that are kept: each costs the kernel about 5 KiB, most of it the
	// buffer in which the text is made.
	keepMost = 2048
)

// kept holds files open that are read again and again: to open one costs more than to read it. What
// nobody reads is closed, so that a server that nobody asks keeps nothing. A file that is open keeps
// no cgroup from being removed.
type kept struct {
	most int // descriptors; 0 keeps none

	mu    sync.Mutex
	files map[string]*files // by cgroup; guarded by mu
	open  int               // descriptors in files; guarded by mu
	sweep *time.Timer       // nil while nothing is kept; guarded by mu
}

// files are those of one cgroup. They belong to the reader that took them.
type files struct {
	list   []file
	opened time.Time // the first of them
	used   time.Time
}

type file struct {
	hierarchy, name string
	fd              int // absent for a file that is not there
}

const absent = -1

func newKept() *kept {
	k := &kept{files: make(map[string]*files)}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		k.most = int(min(limit.Cur/4, keepMost))
	}
	return k
}

// take hands over what is kept of a cgroup.
func (k *kept) take(cgroup string) *files {
	now := time.Now()
	k.mu.Lock()
	f := k.files[cgroup]
	if f != nil {
		delete(k.files, cgroup)
		k.open -= f.descriptors()
	}
	k.mu.Unlock()
	if f != nil && now.Sub(f.opened) > keepFor {
		f.lookAgain(now)
	}
	if f == nil {
		f = &files{opened: now}
	}
	f.used = now
	return f
}

// give keeps the files of a cgroup for the next reader, or closes them.
func (k *kept) give(cgroup string, f *files) {
	n := f.descriptors()
	k.mu.Lock()
	_, twice := k.files[cgroup]
	fits := n > 0 && !twice && k.open+n <= k.most
	if fits {
		k.files[cgroup] = f
		k.open += n
		if k.sweep == nil {
			k.sweep = time.AfterFunc(keepFor, func() { k.closeUnused(time.Now()) })
		}
	}
	k.mu.Unlock()
	if !fits {
		f.close()
	}
}

// closeUnused closes what was not read for keepFor, and comes again while anything is kept.
func (k *kept) closeUnused(now time.Time) {
	var unused []*files
	k.mu.Lock()
	for cgroup, f := range k.files {
		if now.Sub(f.used) >= keepFor {
			unused = append(unused, f)
			delete(k.files, cgroup)
			k.open -= f.descriptors()
		}
	}
	if len(k.files) == 0 {
		k.sweep = nil
	} else {
		k.sweep.Reset(keepFor)
	}
	k.mu.Unlock()
	for _, f := range unused {
		f.close()
	}
}

func (f *files) find(hierarchy, name string) (fd int, known bool) {
	for i := range f.list {
		if f.list[i].name == name && f.list[i].hierarchy == hierarchy {
			return f.list[i].fd, true
		}
	}
	return absent, false
}

func (f *files) descriptors() (n int) {
	for i := range f.list {
		if f.list[i].fd != absent {
			n++
		}
	}
	return n
}

// lookAgain forgets which files are not there: a controller may have been turned on since.
func (f *files) lookAgain(now time.Time) {
	there := f.list[:0]
	for _, one := range f.list {
		if one.fd != absent {
			there = append(there, one)
		}
	}
	f.list, f.opened = there, now
}

func (f *files) close() {
	for _, one := range f.list {
		if one.fd != absent {
			_ = unix.Close(one.fd)
		}
	}
	f.list = nil
}
