package native

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/atomicfile"
	"gantry/internal/pod"
)

// records keeps in memory what records say that are read several times in a life. The files say what is
// true: one that was replaced is read again.
type records[T any] struct {
	// by, if set, is what records are found by when no key is known.
	by func(*T) string

	mu    sync.Mutex
	read  map[pod.Key]record[T]           // guarded by mu
	group map[pod.Key]string              // guarded by mu; what by said of a record when it was read or written last
	found map[string]map[pod.Key]struct{} // guarded by mu; the other way round
}

type record[T any] struct {
	file  version
	value T
}

// version tells a file from what is written in its place.
type version struct {
	inode uint64
	size  int64
	at    unix.Timespec
}

func versionOf(st *unix.Stat_t) version { return version{st.Ino, st.Size, st.Mtim} }

// get returns a copy of the record at path, which is what's. What it points to is shared, and not changed.
func (r *records[T]) get(key pod.Key, path, what string) (*T, error) {
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil {
		r.mu.Lock()
		known, ok := r.read[key]
		r.mu.Unlock()
		if ok && known.file == versionOf(&st) {
			return &known.value, nil
		}
	}
	var n record[T]
	if err := readRecord(path, what, &n.value, &n.file); err != nil {
		r.forget(key)
		return new(T), err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.read == nil {
		r.read = make(map[pod.Key]record[T])
	}
	r.read[key] = n
	r.place(key, &n.value)
	return &n.value, nil
}

// place makes a record found by what by says of it. r.mu is held.
func (r *records[T]) place(key pod.Key, value *T) {
	if r.by == nil {
		return
	}
	r.displace(key)
	if r.found == nil {
		r.group, r.found = make(map[pod.Key]string), make(map[string]map[pod.Key]struct{})
	}
	group := r.by(value)
	r.group[key] = group
	if r.found[group] == nil {
		r.found[group] = make(map[pod.Key]struct{}, 1)
	}
	r.found[group][key] = struct{}{}
}

func (r *records[T]) displace(key pod.Key) {
	group, ok := r.group[key]
	if !ok {
		return
	}
	delete(r.group, key)
	delete(r.found[group], key)
	if len(r.found[group]) == 0 {
		delete(r.found, group)
	}
}

// keysBy returns the keys of the records of which by said this when they were read or written last: of those
// that are there now, and perhaps of some that are gone.
func (r *records[T]) keysBy(group string) []pod.Key {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.found[group]))
}

// put writes a record.
func (r *records[T]) put(key pod.Key, path string, value *T) error {
	defer r.forget(key) // also what was read meanwhile
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.place(key, value) // whoever finds it in vain looks at the file
	r.mu.Unlock()
	return atomicfile.Write(path, data, 0o600)
}

// forget is called when a record may be another by now.
func (r *records[T]) forget(key pod.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.read, key)
}

// gone is called when a record is removed.
func (r *records[T]) gone(key pod.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.read, key)
	r.displace(key)
}

func readRecord(path, what string, into any, file *version) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", what, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("record of %s: %w", what, err)
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("record of %s: %w", what, err)
	}
	*file = versionOf(&st)
	data := make([]byte, st.Size)
	if _, err = io.ReadFull(f, data); err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return fmt.Errorf("record of %s: %w", what, err)
	}
	return nil
}
