package native

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/atomicfile"
	"gantry/internal/pod"
)

// records keeps in memory what records say that are read several times in a life. The files say what is
// true: one that was replaced is read again.
type records[T any] struct {
	mu   sync.Mutex
	read map[pod.Key]record[T] // guarded by mu
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
	return &n.value, nil
}

// put writes a record.
func (r *records[T]) put(key pod.Key, path string, value *T) error {
	defer r.forget(key) // also what was read meanwhile
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o600)
}

func (r *records[T]) forget(key pod.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.read, key)
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
