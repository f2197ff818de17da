// Package unpack turns an OCI layer's tar into a directory tree in overlayfs form: a whiteout becomes
// a character device 0/0, an opaque directory gets the attribute trusted.overlay.opaque.
//
// A layer comes from outside. Every path is opened below the layer's root by the kernel's own rules
// (openat2 with RESOLVE_IN_ROOT) and every name is created through a descriptor of its directory, so
// no entry, symbolic link or hard link reaches anything outside. Limits bound what a layer may take.
//
// Errors: ErrInvalidArgument for a layer that is malformed or hostile, ErrResourceExhausted for one
// that exceeds a limit or fills the disk; errors of the reader come through as they are.
package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Limits bound what one layer may take. A zero field is no limit.
type Limits struct {
	Bytes   int64 // of the decompressed tar, and of its files with the holes of sparse ones
	Entries int64
}

// Summary tells what a layer holds.
type Summary struct {
	Entries int64
	Bytes   int64 // content of regular files, each rounded up to a block of 4096
	// Implicit are directories that had to be made although no entry describes them, parents first.
	// They have mode 0755 and belong to root: what a lower layer says about them is not known here.
	Implicit []string
	// Root says whether an entry describes the root directory itself.
	Root bool
	// Xattrs says whether anything has extended attributes.
	Xattrs bool
}

// Recorder is told what the tar consists of, in its order: with what the files hold, its bytes can be
// put together again.
type Recorder interface {
	// Raw has bytes that are in no file: headers, padding, the stored form of sparse files.
	Raw(p []byte)
	// Content has bytes of a file's content.
	Content(p []byte)
	// File ends the content of the file with this inode number; apart says that Raw had its stored form.
	File(inode uint64, apart bool)
}

const block = 4096

// Layer unpacks the tar that r delivers into the empty directory dir. It reads r to its end, what
// follows the archive included. On an error the directory holds a part. Rec may be nil.
func Layer(ctx context.Context, dir string, r io.Reader, limits Limits, rec Recorder) (Summary, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return Summary{}, fmt.Errorf("open layer directory: %w", err)
	}
	if rec == nil {
		rec = nobody{}
	}
	all := &tape{r: limited{r: r, left: limits.Bytes, bounded: limits.Bytes > 0}, rec: rec}
	u := &unpacker{
		tree:   tree{root: root, implicit: make(map[string]struct{})},
		tape:   all,
		tr:     tar.NewReader(all),
		limits: limits,
		times:  make(map[string]times),
	}
	defer u.close()
	if err := u.all(ctx); err != nil {
		return Summary{}, classify(err)
	}
	if _, err := io.Copy(io.Discard, all); err != nil {
		return Summary{}, fmt.Errorf("read layer: %w", err)
	}
	u.sum.Implicit, u.sum.Xattrs = u.implicitDirs(), u.xattrs
	return u.sum, nil
}

type unpacker struct {
	tree
	tape   *tape
	tr     *tar.Reader
	limits Limits
	sum    Summary
	size   int64            // of all files so far
	times  map[string]times // of directories, set when nothing more is created in them
}

func (u *unpacker) all(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		hdr, err := u.tr.Next()
		if err == io.EOF {
			return u.finish()
		}
		if err != nil {
			return fmt.Errorf("read layer: %w", err)
		}
		if u.sum.Entries++; u.limits.Entries > 0 && u.sum.Entries > u.limits.Entries {
			return fmt.Errorf("layer has more than %d entries: %w", u.limits.Entries, errdefs.ErrResourceExhausted)
		}
		// a sparse file may say any size in a few bytes
		if u.size += min(hdr.Size, math.MaxInt64-u.size); u.limits.Bytes > 0 && u.size > u.limits.Bytes {
			return fmt.Errorf("layer's files are larger than %d bytes: %w", u.limits.Bytes, errdefs.ErrResourceExhausted)
		}
		if err := u.entry(hdr); err != nil {
			return fmt.Errorf("unpack %q: %w", hdr.Name, err)
		}
	}
}

func (u *unpacker) entry(hdr *tar.Header) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := clean(hdr.Name)
	if err != nil {
		return err
	}
	if name == "." {
		return u.rootEntry(hdr)
	}
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	if err := u.enter(dir); err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(base)
	}
	return u.create(hdr, name, base)
}

func (u *unpacker) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return fmt.Errorf("the root is not a directory: %w", errdefs.ErrInvalidArgument)
	}
	u.sum.Root = true
	if err := u.enter("."); err != nil {
		return err
	}
	u.times["."] = timesOf(hdr)
	return u.setMetadata(".", hdr)
}

// create makes the entry base in the directory that was entered, replacing what an earlier entry put
// there.
func (u *unpacker) create(hdr *tar.Header, name, base string) error {
	wasWhiteout, exists, err := u.clear(name, base, hdr.Typeflag == tar.TypeDir)
	if err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		if err := u.directory(hdr, name, base, exists); err != nil {
			return err
		}
		if wasWhiteout { // the lower directory is gone and this is a new one
			return u.opaque(base)
		}
		return nil
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return u.regular(hdr, base)
	case tar.TypeLink:
		return u.hardlink(hdr, base)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(hdr.Linkname, u.parent, base); err != nil {
			return fmt.Errorf("symlink: %w", err)
		}
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if err := unix.Mknodat(u.parent, base, nodeMode(hdr.Typeflag)|0o600, nodeDevice(hdr)); err != nil {
			return fmt.Errorf("mknod: %w", err)
		}
	default:
		return fmt.Errorf("entries of type %q are not supported: %w", hdr.Typeflag, errdefs.ErrInvalidArgument)
	}
	if err := u.setMetadata(base, hdr); err != nil {
		return err
	}
	return timesOf(hdr).set(u.parent, base)
}

func (u *unpacker) directory(hdr *tar.Header, name, base string, exists bool) error {
	if !exists {
		if err := unix.Mkdirat(u.parent, base, 0o700); err != nil {
			return fmt.Errorf("mkdir: %w", err)
		}
	}
	delete(u.implicit, name)
	u.times[name] = timesOf(hdr)
	return u.setMetadata(base, hdr)
}

func (u *unpacker) hardlink(hdr *tar.Header, base string) error {
	target, err := clean(hdr.Linkname)
	if err != nil {
		return err
	}
	dir, tbase := path.Split(target)
	fd, err := u.open(path.Clean(dir))
	if err != nil {
		return fmt.Errorf("hard link to %q, which this layer does not have: %w", hdr.Linkname, errdefs.ErrInvalidArgument)
	}
	defer func() { _ = unix.Close(fd) }()
	err = unix.Linkat(fd, tbase, u.parent, base, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EPERM):
		return fmt.Errorf("hard link to %q, which this layer does not have as a file: %w", hdr.Linkname, errdefs.ErrInvalidArgument)
	case err != nil:
		return fmt.Errorf("link to %q: %w", hdr.Linkname, err)
	}
	return nil
}

// finish sets the times of directories, children first.
func (u *unpacker) finish() error {
	names := make([]string, 0, len(u.times))
	for name := range u.times {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range slices.Backward(names) {
		fd, err := u.open(name)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue // a later entry replaced it
		}
		if err != nil {
			return fmt.Errorf("times of %q: %w", name, err)
		}
		err = u.times[name].set(fd, ".")
		_ = unix.Close(fd)
		if err != nil {
			return fmt.Errorf("times of %q: %w", name, err)
		}
	}
	return nil
}

func (u *unpacker) implicitDirs() []string {
	names := make([]string, 0, len(u.implicit))
	for name := range u.implicit {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// clean makes an entry's name relative to the layer's root, "." for the root itself. A name that
// climbs above the root is refused.
func clean(name string) (string, error) {
	rel := path.Clean(strings.TrimLeft(name, "/"))
	if rel == ".." || strings.HasPrefix(rel, "../") {
		return "", fmt.Errorf("%q leaves the layer: %w", name, errdefs.ErrInvalidArgument)
	}
	return rel, nil
}

// tape tells the recorder what is read of the tar but the contents of files.
type tape struct {
	r   limited
	rec Recorder
	off bool // a file's content passes
}

func (t *tape) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if !t.off && n > 0 {
		t.rec.Raw(p[:n])
	}
	return n, err
}

// nobody records nothing.
type nobody struct{}

func (nobody) Raw([]byte)        {}
func (nobody) Content([]byte)    {}
func (nobody) File(uint64, bool) {}

// limited ends a stream that is longer than allowed with an error.
type limited struct {
	r       io.Reader
	left    int64
	bounded bool
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.bounded {
		if l.left -= int64(n); l.left < 0 {
			return 0, fmt.Errorf("layer is larger than allowed: %w", errdefs.ErrResourceExhausted)
		}
	}
	return n, err
}

func classify(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}
