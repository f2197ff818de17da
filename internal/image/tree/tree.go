// Package tree remembers what a layer's directory was when it was unpacked, finds out how it differs
// from that now, and puts the layer's tar together again, byte for byte.
//
// The memory is one file a layer, compressed: first the tar with the contents of its files left out
// (their lengths and checksums stand in their places), then one entry for everything in the directory.
// The checksums are XXH64: they find what a disk or a person damaged, and cost little while a layer is
// unpacked. They are no proof against forgery; the layer's diff id is, and WriteTar's output has it.
package tree

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Entry is one thing in a directory tree.
type Entry struct {
	Path      string // relative to the root, which is "."
	Mode      uint32 // type and permissions, as in stat(2)
	UID, GID  uint32
	Size      int64 // of a regular file
	Sec, Nsec int64 // when it was modified
	Device    uint64
	Target    string            // of a symbolic link
	Xattrs    map[string]string // what a layer may bring: see ours
	// Content numbers the contents of the layer's regular files, from 1, in the order of the tar; hard
	// links have the same. Scan does not know it.
	Content int

	inode uint64
}

// Dir says whether e is a directory.
func (e *Entry) Dir() bool { return e.Mode&unix.S_IFMT == unix.S_IFDIR }

// Regular says whether e is a regular file.
func (e *Entry) Regular() bool { return e.Mode&unix.S_IFMT == unix.S_IFREG }

// Scan yields everything below dir, dir itself first, in an order that depends on the names alone
// (comparePaths). It ends with an error if something cannot be read. Xattrs are read only if wanted.
func Scan(dir string, xattrs bool) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			yield(Entry{}, &os.PathError{Op: "open", Path: dir, Err: err})
			return
		}
		s := &scanner{xattrs: xattrs, yield: yield}
		root, err := s.entry(fd, ".", ".")
		if err != nil {
			_ = unix.Close(fd)
			yield(Entry{}, err)
			return
		}
		if !yield(root, nil) {
			_ = unix.Close(fd)
			return
		}
		if err := s.dir(fd, "."); err != nil && !errors.Is(err, errEnough) {
			yield(Entry{}, err)
		}
	}
}

var errEnough = errors.New("the caller has seen enough")

type scanner struct {
	xattrs bool
	yield  func(Entry, error) bool
}

// dir yields what is below the directory fd, and closes it.
func (s *scanner) dir(fd int, at string) error {
	d := os.NewFile(uintptr(fd), at)
	defer func() { _ = d.Close() }()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", at, err)
	}
	slices.Sort(names)
	for _, name := range names {
		e, err := s.entry(fd, name, path.Join(at, name))
		if err != nil {
			return err
		}
		if !s.yield(e, nil) {
			return errEnough
		}
		if !e.Dir() {
			continue
		}
		sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open directory %q: %w", e.Path, err)
		}
		if err := s.dir(sub, e.Path); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) entry(parent int, name, at string) (Entry, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return Entry{}, fmt.Errorf("stat %q: %w", at, err)
	}
	e := Entry{
		Path: at, Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec, inode: st.Ino,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Size = st.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Device = st.Rdev
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(parent, name, buf)
		if err != nil {
			return Entry{}, fmt.Errorf("read link %q: %w", at, err)
		}
		e.Target = string(buf[:n])
	}
	if s.xattrs {
		var err error
		if e.Xattrs, err = xattrsOf(fmt.Sprintf("/proc/self/fd/%d/%s", parent, name)); err != nil {
			return Entry{}, fmt.Errorf("attributes of %q: %w", at, err)
		}
	}
	return e, nil
}

const opaqueXattr = "trusted.overlay.opaque"

// ours says whether an attribute is a layer's: not what the node's security modules give every file,
// and of overlayfs's own only the one that marks an opaque directory.
func ours(name string) bool {
	switch name {
	case opaqueXattr:
		return true
	case "security.selinux", "security.ima", "security.evm":
		return false
	}
	return !strings.HasPrefix(name, "trusted.overlay.")
}

// xattrsOf returns the extended attributes of path, nil if it has none.
func xattrsOf(path string) (map[string]string, error) {
	buf := make([]byte, 64<<10) // no list and no value is longer (xattr(7))
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all map[string]string
	for name := range bytes.SplitSeq(bytes.Clone(buf[:n]), []byte{0}) {
		if len(name) == 0 || !ours(string(name)) {
			continue
		}
		n, err := unix.Lgetxattr(path, string(name), buf)
		if err != nil {
			return nil, err
		}
		if all == nil {
			all = make(map[string]string)
		}
		all[string(name)] = string(buf[:n])
	}
	return all, nil
}

// comparePaths orders paths as Scan yields them: a directory comes before what is in it, and that
// before the directory's next sibling.
func comparePaths(a, b string) int {
	if a == "." || b == "." {
		return strings.Compare(rootFirst(a), rootFirst(b))
	}
	for i := range min(len(a), len(b)) {
		switch {
		case a[i] == b[i]:
		case a[i] == '/':
			return -1
		case b[i] == '/' || a[i] > b[i]:
			return 1
		default:
			return -1
		}
	}
	return len(a) - len(b)
}

func rootFirst(p string) string {
	if p == "." {
		return ""
	}
	return p
}

// sorted are the names of an entry's attributes.
func (e *Entry) sorted() []string { return slices.Sorted(maps.Keys(e.Xattrs)) }
