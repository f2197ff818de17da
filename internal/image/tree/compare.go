package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

// Kind is the way in which something differs.
type Kind string

// What may differ. A thing that is missing, added or of another type is not compared further.
const (
	Missing    Kind = "missing"
	Added      Kind = "added"
	Type       Kind = "type"
	Size       Kind = "size"
	Content    Kind = "content"
	Mode       Kind = "mode"
	Owner      Kind = "owner"
	Time       Kind = "time"
	Attributes Kind = "attributes"
	Target     Kind = "target"
	Device     Kind = "device"
	Record     Kind = "record" // of the layer: it is lost
)

// Difference is one way in which a path is not what the record says.
type Difference struct {
	Path   string `json:"path"`
	Kind   Kind   `json:"kind"`
	Detail string `json:"detail,omitempty"` // what it is and should be
	// Fetch says that the layer is needed to mend it: its content is on this machine no more.
	Fetch bool `json:"fetch,omitempty"`
}

func (d Difference) String() string {
	if d.Detail == "" {
		return fmt.Sprintf("%s: %s", d.Path, d.Kind)
	}
	return fmt.Sprintf("%s: %s: %s", d.Path, d.Kind, d.Detail)
}

// Comparison is what Compare found.
type Comparison struct {
	Entries     int64 // that the record has
	Bytes       int64 // of contents read
	Differences []Difference
}

// Fetch says whether the layer is needed to mend what differs.
func (c *Comparison) Fetch() bool {
	for _, d := range c.Differences {
		if d.Fetch {
			return true
		}
	}
	return false
}

// Compare reads everything below dir and says how it differs from the record. A directory that is
// absent differs in everything. Errors are of the record (ErrDataLoss) and of reading: a file that the
// disk does not give back is a difference.
func Compare(ctx context.Context, record, dir string) (*Comparison, error) {
	next, stop := iter.Pull2(Scan(dir, true))
	defer stop()
	c := &comparer{dir: dir, next: next, good: make(map[int]uint64)}
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		c.next = func() (Entry, error, bool) { return Entry{}, nil, false }
	}
	if err := c.advance(); err != nil {
		return nil, err
	}
	err := Read(record, Visitor{
		Content: func(s Sum) error { c.contents = append(c.contents, s.Value); return nil },
		Entry: func(e *Entry) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return c.entry(e)
		},
	})
	if err != nil {
		return nil, err
	}
	for ; c.more; err = c.advance() {
		if err != nil {
			return nil, err
		}
		c.differs(c.have.Path, Added, "")
	}
	return &c.found, err
}

type comparer struct {
	dir      string
	contents []uint64 // checksums
	next     func() (Entry, error, bool)
	have     Entry
	more     bool           // have is valid
	good     map[int]uint64 // content to an inode that was read and holds it
	found    Comparison
}

func (c *comparer) advance() (err error) {
	c.have, err, c.more = c.next()
	return err
}

func (c *comparer) differs(path string, k Kind, format string, args ...any) {
	c.found.Differences = append(c.found.Differences, Difference{Path: path, Kind: k, Detail: fmt.Sprintf(format, args...)})
}

// lost notes a difference that only the layer can mend.
func (c *comparer) lost(path string, k Kind, format string, args ...any) {
	c.differs(path, k, format, args...)
	c.found.Differences[len(c.found.Differences)-1].Fetch = true
}

// entry compares the next entry of the record with what is there.
func (c *comparer) entry(want *Entry) error {
	c.found.Entries++
	for c.more && comparePaths(c.have.Path, want.Path) < 0 {
		c.differs(c.have.Path, Added, "")
		if err := c.advance(); err != nil {
			return err
		}
	}
	if !c.more || c.have.Path != want.Path {
		c.absent(want, Missing)
		return nil
	}
	c.metadata(want)
	return c.advance()
}

func (c *comparer) absent(want *Entry, k Kind) {
	if want.Regular() {
		c.lost(want.Path, k, "")
		return
	}
	c.differs(want.Path, k, "")
}

func (c *comparer) metadata(want *Entry) {
	have := &c.have
	if have.Mode&unix.S_IFMT != want.Mode&unix.S_IFMT {
		c.absent(want, Type)
		return
	}
	if have.Target != want.Target {
		c.differs(want.Path, Target, "is %q, was %q", have.Target, want.Target)
	}
	if have.Device != want.Device {
		c.differs(want.Path, Device, "is %d:%d, was %d:%d", unix.Major(have.Device), unix.Minor(have.Device),
			unix.Major(want.Device), unix.Minor(want.Device))
	}
	if want.Regular() {
		c.content(want)
	}
	if have.Mode != want.Mode {
		c.differs(want.Path, Mode, "is %04o, was %04o", have.Mode&0o7777, want.Mode&0o7777)
	}
	if have.UID != want.UID || have.GID != want.GID {
		c.differs(want.Path, Owner, "is %d:%d, was %d:%d", have.UID, have.GID, want.UID, want.GID)
	}
	if have.Sec != want.Sec || have.Nsec != want.Nsec {
		c.differs(want.Path, Time, "is %d.%09d, was %d.%09d", have.Sec, have.Nsec, want.Sec, want.Nsec)
	}
	if !maps.Equal(have.Xattrs, want.Xattrs) {
		c.differs(want.Path, Attributes, "are %q, were %q", have.sorted(), want.sorted())
	}
}

func (c *comparer) content(want *Entry) {
	if c.have.Size != want.Size {
		c.lost(want.Path, Size, "is %d, was %d", c.have.Size, want.Size)
		return
	}
	if want.Content < 1 || want.Content > len(c.contents) || c.good[want.Content] == c.have.inode {
		return
	}
	sum, err := checksum(filepath.Join(c.dir, want.Path))
	c.found.Bytes += want.Size
	switch {
	case err != nil:
		c.lost(want.Path, Content, "cannot be read: %v", err)
	case sum != c.contents[want.Content-1]:
		c.lost(want.Path, Content, "checksum is %016x, was %016x", sum, c.contents[want.Content-1])
	default:
		c.good[want.Content] = c.have.inode
	}
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

func checksum(path string) (uint64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	h := xxhash.New()
	for {
		n, err := f.Read(*buf)
		_, _ = h.Write((*buf)[:n]) // a hash never fails
		if err == io.EOF {
			return h.Sum64(), nil
		}
		if err != nil {
			return 0, err
		}
	}
}
