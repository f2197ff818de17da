package tree

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Mend makes dir what the record says, where differences (of Compare) say that it is not. What has to
// come from the layer is moved out of fresh, where the same layer was unpacked again; with fresh ""
// such differences stay. Each file is replaced at once, so that a reader sees the old or the new one.
func Mend(record, dir, fresh string, differences []Difference) error {
	m := &mender{
		dir: dir, fresh: fresh, kinds: make(map[string]map[Kind]bool),
		bad: make(map[int]bool), dirs: make(map[string]Entry), stale: make(map[string]bool),
	}
	var added []string
	for _, d := range differences {
		if d.Kind == Added {
			added = append(added, d.Path)
			continue
		}
		if m.kinds[d.Path] == nil {
			m.kinds[d.Path] = make(map[Kind]bool)
		}
		m.kinds[d.Path][d.Kind] = true
	}
	for _, p := range added {
		if err := os.RemoveAll(m.path(p)); err != nil {
			return fmt.Errorf("mend: %w", err)
		}
		m.changedIn(p)
	}
	// hard links of a file that goes must go with it
	if err := Read(record, Visitor{Entry: m.findContents}); err != nil {
		return err
	}
	if err := Read(record, Visitor{Entry: m.entry}); err != nil {
		return fmt.Errorf("mend: %w", err)
	}
	return m.directories()
}

type mender struct {
	dir, fresh string
	kinds      map[string]map[Kind]bool // by path
	bad        map[int]bool             // contents that are replaced
	dirs       map[string]Entry         // directories by path
	stale      map[string]bool          // directories whose metadata is to be set at the end
}

func (m *mender) path(p string) string { return filepath.Join(m.dir, p) }

func (m *mender) changedIn(p string) { m.stale[filepath.Dir(p)] = true }

func (m *mender) findContents(e *Entry) error {
	if k := m.kinds[e.Path]; e.Content > 0 && (k[Content] || k[Size] || k[Missing] || k[Type]) {
		m.bad[e.Content] = true
	}
	return nil
}

func (m *mender) entry(e *Entry) error {
	if e.Dir() {
		m.dirs[e.Path] = *e
	}
	k := m.kinds[e.Path]
	switch {
	case e.Regular() && (m.bad[e.Content] || k[Missing] || k[Type] || k[Size]):
		return m.replace(e)
	case k == nil:
		return nil
	case k[Missing] || k[Type] || k[Target] || k[Device]:
		if err := m.create(e); err != nil {
			return fmt.Errorf("%q: %w", e.Path, err)
		}
	}
	if e.Dir() {
		m.stale[e.Path] = true
		return nil
	}
	return setMetadata(m.path(e.Path), e)
}

// replace puts the file from the fresh tree in its place.
func (m *mender) replace(e *Entry) error {
	if m.fresh == "" {
		return nil
	}
	m.changedIn(e.Path)
	to := m.path(e.Path)
	if st, err := os.Lstat(to); err == nil && st.IsDir() {
		if err := os.RemoveAll(to); err != nil {
			return err
		}
	}
	return os.Rename(filepath.Join(m.fresh, e.Path), to)
}

// create makes what is not a regular file.
func (m *mender) create(e *Entry) error {
	m.changedIn(e.Path)
	to := m.path(e.Path)
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return os.Mkdir(to, 0o700)
	case unix.S_IFLNK:
		return os.Symlink(e.Target, to)
	}
	return unix.Mknod(to, e.Mode, int(e.Device))
}

// directories gives directories their metadata after everything in them was made, children first.
func (m *mender) directories() error {
	for _, p := range slices.Backward(slices.SortedFunc(maps.Keys(m.stale), comparePaths)) {
		e, ok := m.dirs[p]
		if !ok {
			continue // it was added, and is gone
		}
		if err := setMetadata(m.path(p), &e); err != nil {
			return fmt.Errorf("mend: %w", err)
		}
	}
	return nil
}

// setMetadata gives path the owner, attributes, mode and time of e, in the order in which none undoes
// another.
func setMetadata(path string, e *Entry) error {
	if err := os.Lchown(path, int(e.UID), int(e.GID)); err != nil {
		return err
	}
	have, err := xattrsOf(path)
	if err != nil {
		return fmt.Errorf("attributes of %s: %w", path, err)
	}
	for name := range have {
		if _, ok := e.Xattrs[name]; !ok {
			if err := unix.Lremovexattr(path, name); err != nil && !errors.Is(err, unix.ENODATA) {
				return fmt.Errorf("remove attribute %s of %s: %w", name, path, err)
			}
		}
	}
	for name, value := range e.Xattrs {
		if err := unix.Lsetxattr(path, name, []byte(value), 0); err != nil {
			return fmt.Errorf("set attribute %s of %s: %w", strings.TrimSpace(name), path, err)
		}
	}
	if e.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(path, e.Mode&0o7777); err != nil {
			return &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: e.Sec, Nsec: e.Nsec}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "set times", Path: path, Err: err}
	}
	return nil
}
