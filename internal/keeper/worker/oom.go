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

// oomKills is how many processes the kernel killed in a cgroup for lack of memory.
func oomKills(path string) int {
	if path == "" {
		return 0
	}
	for _, name := range []string{oomFile(path), filepath.Join(cgroupRoot, "memory", path, "memory.oom_control")} {
		data, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if value, ok := strings.CutPrefix(line, "oom_kill "); ok {
				n, _ := strconv.Atoi(strings.TrimSpace(value))
				return n
			}
		}
	}
	return 0
}

func oomFile(path string) string { return filepath.Join(cgroupRoot, path, "memory.events") }

// oomWatch tells of OOM kills: cgroup v2 by inotify on memory.events, v1 by an eventfd of each
// cgroup.
type oomWatch struct {
	tell    func(key string)
	inotify *os.File

	mu     sync.Mutex
	byKey  map[string]*oomWatched // guarded by mu
	byMark map[int]*oomWatched    // guarded by mu; inotify's watch descriptors
}

type oomWatched struct {
	key, path string
	seen      int
	mark      int      // inotify's watch descriptor, 0 with v1
	event     *os.File // v1
}

func newOOMWatch(tell func(key string)) (*oomWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	o := &oomWatch{
		tell: tell, inotify: os.NewFile(uintptr(fd), "inotify"),
		byKey: map[string]*oomWatched{}, byMark: map[int]*oomWatched{},
	}
	go o.read()
	return o, nil
}

// add begins to watch a container's cgroup. Without it only the end of the container is examined.
func (o *oomWatch) add(key, path string) {
	if path == "" {
		return
	}
	w := &oomWatched{key: key, path: path, seen: oomKills(path)}
	o.mu.Lock()
	defer o.mu.Unlock()
	mark, err := unix.InotifyAddWatch(int(fdOf(o.inotify)), oomFile(path), unix.IN_MODIFY)
	if err == nil {
		w.mark = mark
		o.byMark[mark] = w
	} else if w.event, err = oomEvent(filepath.Join(cgroupRoot, "memory", path)); err == nil {
		go o.readEvent(w)
	}
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			log.Printf("watch %s for OOM kills: %v", path, err)
		}
		return
	}
	o.byKey[key] = w
}

// seen is how many kills were seen in a container's cgroup, which may be gone.
func (o *oomWatch) seen(key string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if w := o.byKey[key]; w != nil {
		return w.seen
	}
	return 0
}

func (o *oomWatch) remove(key string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.byKey[key]
	if w == nil {
		return
	}
	delete(o.byKey, key)
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

// readEvent waits for v1's notice, which comes before the kill that it is about.
func (o *oomWatch) readEvent(w *oomWatched) {
	var count [8]byte
	for {
		if _, err := w.event.Read(count[:]); err != nil {
			return
		}
		time.AfterFunc(100*time.Millisecond, func() { o.check(w) })
	}
}

func (o *oomWatch) check(w *oomWatched) {
	n := oomKills(w.path)
	o.mu.Lock()
	more := n > w.seen
	w.seen = max(n, w.seen)
	o.mu.Unlock()
	if more {
		o.tell(w.key)
	}
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
