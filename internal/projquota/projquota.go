// Package projquota counts what directories occupy by the project quotas of their file system: xfs and
// ext4 count for every project id, as files come and go, the bytes and inodes of the files that have it.
// What such a directory occupies is then one system call, and no walk.
//
// Ids are one namespace for everybody who uses projects of a file system. This package stays in a range,
// and in it leaves alone every id that anybody else has files or limits under.
package projquota

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Range are project ids, both ends included. The zero value is none.
type Range struct{ First, Last uint32 }

// ParseRange reads "FIRST-LAST"; "" is the empty range. Id 0 is what files have that are in no project.
func ParseRange(s string) (Range, error) {
	if s == "" {
		return Range{}, nil
	}
	from, to, _ := strings.Cut(s, "-")
	first, err := strconv.ParseUint(from, 10, 32)
	last, bad := strconv.ParseUint(to, 10, 32)
	if err != nil || bad != nil || first == 0 || first > last {
		return Range{}, fmt.Errorf("%q is not FIRST-LAST with 1 <= FIRST <= LAST: %w", s, errdefs.ErrInvalidArgument)
	}
	return Range{uint32(first), uint32(last)}, nil
}

func (r Range) String() string { return fmt.Sprintf("%d-%d", r.First, r.Last) }

// Usage is what a project occupies.
type Usage struct{ Bytes, Inodes uint64 }

// FS gives project ids to directories of one file system. It is safe for concurrent use.
type FS struct {
	dir *os.File
	ids Range

	mu   sync.Mutex
	used map[uint32]bool // guarded by mu; ids that were assigned or adopted
}

// Open returns the projects of dir's file system. ErrNotImplemented says that it does not count them, or
// that the kernel cannot be asked (Linux before 5.14); ErrFailedPrecondition that dir is in a project of
// somebody's, whose count it would escape.
func Open(dir string, ids Range) (*FS, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("project quotas: %w", err)
	}
	if err = check(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("project quotas of %s: %w", dir, err)
	}
	return &FS{dir: f, ids: ids, used: make(map[uint32]bool)}, nil
}

func check(dir *os.File) error {
	on, err := accounting(dir)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotImplemented)
	}
	if err != nil {
		return err
	}
	if !on {
		return fmt.Errorf("not switched on (mount option prjquota): %w", errdefs.ErrNotImplemented)
	}
	a, err := attributesOf(dir)
	if err != nil {
		return err
	}
	if a.project != 0 {
		return fmt.Errorf("the directory is in project %d: %w", a.project, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Close ends the use of the file system. Directories keep their ids.
func (f *FS) Close() error { return f.dir.Close() }

// Assign takes an id that is free and gives it to directories, which should be empty; what is made in
// them inherits it. No free id is ErrResourceExhausted.
func (f *FS) Assign(dirs ...string) (uint32, error) {
	id, err := f.take()
	if err != nil {
		return 0, err
	}
	for _, dir := range dirs {
		if err := setProject(dir, id); err != nil {
			f.Release(id)
			return 0, fmt.Errorf("project %d for %s: %w", id, dir, err)
		}
	}
	return id, nil
}

// take finds the lowest id that is free, so that few are ever used.
func (f *FS) take() (uint32, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := uint64(f.ids.First); id <= uint64(f.ids.Last); id++ {
		if f.used[uint32(id)] {
			continue
		}
		q, err := quotaOf(f.dir, uint32(id))
		if err != nil {
			return 0, fmt.Errorf("project %d: %w", id, err)
		}
		if !q.unused() { // somebody else's, or files of ours that were removed and are still open
			continue
		}
		f.used[uint32(id)] = true
		return uint32(id), nil
	}
	return 0, fmt.Errorf("project ids %s are all in use: %w", f.ids, errdefs.ErrResourceExhausted)
}

// Adopt takes the id that an earlier Assign gave to dir, 0 if dir has none of the range.
func (f *FS) Adopt(dir string) (uint32, error) {
	d, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, fmt.Errorf("project: %w", err)
	}
	defer func() { _ = d.Close() }()
	a, err := attributesOf(d)
	if err != nil {
		return 0, fmt.Errorf("project of %s: %w", dir, err)
	}
	if a.project < f.ids.First || a.project > f.ids.Last {
		return 0, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.used[a.project] = true
	return a.project, nil
}

// Release gives an id back whose directories are gone.
func (f *FS) Release(id uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.used, id)
}

// Usage is what the project occupies now.
func (f *FS) Usage(id uint32) (Usage, error) {
	q, err := quotaOf(f.dir, id)
	if err != nil {
		return Usage{}, fmt.Errorf("usage of project %d: %w", id, err)
	}
	return Usage{Bytes: q.bytes, Inodes: q.inodes}, nil
}
