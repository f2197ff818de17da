package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// kills is how many processes the kernel killed in a cgroup and below it for lack of memory; ok is
// false where nobody knows.
func (o *oomWatch) kills(path string) (n int, ok bool) {
	for _, name := range []string{o.file(path), filepath.Join(o.root, "memory", path, "memory.oom_control")} {
		data, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if value, found := strings.CutPrefix(line, "oom_kill "); found {
				n, err = strconv.Atoi(strings.TrimSpace(value))
				return n, err == nil
			}
		}
	}
	return 0, false
}

func (o *oomWatch) file(path string) string { return filepath.Join(o.root, path, "memory.events") }

// oomWatch tells of OOM kills: cgroup v2 by inotify on memory.events, v1 by an eventfd of each
// cgroup.
type oomWatch struct {
	root    string // where cgroups are mounted
	tell    func(key string)
	inotify *os.File

	mu     sync.Mutex
	byKey  map[string]*oomWatched // guarded by mu
	byMark map[int]*oomWatched    // guarded by mu; inotify's watch descriptors
	// known is how many kills below a parent of containers' cgroups are known; guarded by mu.
	known map[string]int
}

type oomWatched struct {
	key, path string
	seen      int
	mark      int      // inotify's watch descriptor, 0 with v1
	event     *os.File // v1
}

func newOOMWatch(root string, tell func(key string)) (*oomWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	o := &oomWatch{
		root: root, tell: tell, inotify: os.NewFile(uintptr(fd), "inotify"),
		byKey: map[string]*oomWatched{}, byMark: map[int]*oomWatched{}, known: map[string]int{},
	}
	go o.read()
	return o, nil
}

// add begins to watch a container's cgroup. Without it only the end of the container is examined.
func (o *oomWatch) add(key, path string) {
	if path == "" {
		return
	}
	w := &oomWatched{key: key, path: path}
	w.seen, _ = o.kills(path)
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.known[filepath.Dir(path)]; !ok {
		o.known[filepath.Dir(path)], _ = o.kills(filepath.Dir(path))
	}
	mark, err := unix.InotifyAddWatch(int(fdOf(o.inotify)), o.file(path), unix.IN_MODIFY)
	if err == nil {
		w.mark = mark
		o.byMark[mark] = w
	} else if w.event, err = oomEvent(filepath.Join(o.root, "memory", path)); err == nil {
		go o.readEvent(w)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Printf("watch %s for OOM kills: %v", path, err)
	}
	o.byKey[key] = w
}

// ended returns how many kills there were in the cgroup of a container that has ended. Systemd removes
// a scope's cgroup, and its count, when the last process has left it, maybe before anyone could look;
// then what the parent counts and no container explains is this one's, if it was killed.
func (o *oomWatch) ended(key string, killed bool) int {
	o.mu.Lock()
	w := o.byKey[key]
	o.mu.Unlock()
	if w == nil {
		return 0
	}
	// One look: the cgroup may be gone before the next.
	if n, ok := o.kills(w.path); ok || !killed {
		o.count(w, n)
	} else {
		o.unexplained(w)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return w.seen
}

// unexplained gives w the kills below its parent that are nobody else's.
func (o *oomWatch) unexplained(w *oomWatched) {
	parent := filepath.Dir(w.path)
	all, ok := o.kills(parent)
	if !ok {
		return
	}
	o.mu.Lock()
	var siblings []*oomWatched
	for _, s := range o.byKey {
		if s != w && filepath.Dir(s.path) == parent {
			siblings = append(siblings, s)
		}
	}
	o.mu.Unlock()
	for _, s := range siblings {
		o.check(s)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if more := all - o.known[parent]; more > 0 {
		w.seen += more
		o.known[parent] = all
	}
}

func (o *oomWatch) remove(key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.byKey[key]
	if w == nil {
		return
	}
	delete(o.byKey, key)
	o.forgetParent(filepath.Dir(w.path))
	if w.event != nil {
		_ = w.event.Close()
		return
	}
	delete(o.byMark, w.mark)
	_, _ = unix.InotifyRmWatch(int(fdOf(o.inotify)), uint32(w.mark))
}

func (o *oomWatch) read() {
	var buf [4096]byte
	for {
		n, err := o.inotify.Read(buf[:])
		if err != nil {
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			mark := int(int32(binary.NativeEndian.Uint32(b)))
			length := binary.NativeEndian.Uint32(b[12:])
			b = b[unix.SizeofInotifyEvent+length:]
			o.mu.Lock()
			w := o.byMark[mark]
			o.mu.Unlock()
			if w != nil {
				o.check(w)
			}
		}
	}
}

// How long after a notice of v1 its kill is looked for first, and for how much longer each time until it is no more.
const (
	firstLook = 100 * time.Millisecond
	lastLook  = time.Minute
)

// readEvent waits for v1's notice, which comes before the kill that it is about: a moment, or longer where the machine has
// much to do, and several kills may share one.
func (o *oomWatch) readEvent(w *oomWatched) {
	var count [8]byte
	var at time.Time // of the next look; zero is none
	wait := firstLook
	for {
		_, err := w.event.Read(count[:])
		switch {
		case err == nil:
			if soon := time.Now().Add(firstLook); at.IsZero() || soon.Before(at) {
				at = soon
			}
			wait = firstLook
		case errors.Is(err, os.ErrDeadlineExceeded):
			o.check(w)
			if wait, at = 2*wait, time.Now().Add(wait); wait > lastLook {
				at = time.Time{}
			}
		default:
			return
		}
		if err := w.event.SetReadDeadline(at); err != nil {
			return
		}
	}
}

func (o *oomWatch) check(w *oomWatched) {
	if n, ok := o.kills(w.path); ok && o.count(w, n) {
		o.tell(w.key)
	}
}

// count notes that a container's cgroup counts n kills, and says whether these are more than before.
func (o *oomWatch) count(w *oomWatched, n int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	more := n - w.seen
	if more <= 0 {
		return false
	}
	w.seen = n
	o.known[filepath.Dir(w.path)] += more
	return true
}

// forgetParent forgets a parent below which no container is watched. The caller has the lock.
func (o *oomWatch) forgetParent(parent string) {
	for _, w := range o.byKey {
		if filepath.Dir(w.path) == parent {
			return
		}
	}
	delete(o.known, parent)
}

// oomEvent registers an eventfd for a v1 memory cgroup.
func oomEvent(dir string) (*os.File, error) {
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "oom")
	line := fmt.Sprintf("%d %d", fd, fdOf(control))
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// fdOf is f's descriptor, without making it block as File.Fd may.
func fdOf(f *os.File) (fd uintptr) {
	rc, err := f.SyscallConn()
	if err != nil {
		return ^uintptr(0)
	}
	_ = rc.Control(func(n uintptr) { fd = n })
	return fd
}
