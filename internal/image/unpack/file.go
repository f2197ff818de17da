package unpack

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// writeBack is the number of bytes after which the kernel is told to begin writing a file out, so
// that little is left for the sync at the end of the pull.
const writeBack = 8 << 20

var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

func (u *unpacker) regular(hdr *tar.Header, base string) (err error) {
	fd, err := unix.Openat(u.parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	defer func() {
		if cerr := unix.Close(fd); err == nil && cerr != nil {
			err = fmt.Errorf("close: %w", cerr)
		}
	}()
	sparse := isSparse(hdr)
	u.tape.off = !sparse
	n, err := u.content(fd, sparse)
	u.tape.off = false
	if err != nil {
		return err
	}
	u.sum.Bytes += (n + block - 1) / block * block
	if err := u.setFileMetadata(fd, hdr); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	u.tape.rec.File(st.Ino, sparse)
	return timesOf(hdr).set(u.parent, base)
}

// content writes the entry's content to fd and returns its length.
func (u *unpacker) content(fd int, sparse bool) (int64, error) {
	pooled := buffers.Get().(*[]byte)
	defer buffers.Put(pooled)
	var size, started int64
	for more := true; more; {
		n, err := fill(u.tr, *pooled)
		if more = err == nil; err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("read content: %w", err)
		}
		u.tape.rec.Content((*pooled)[:n])
		if err := put(fd, (*pooled)[:n], size, sparse); err != nil {
			return 0, fmt.Errorf("write: %w", err)
		}
		if size += int64(n); size-started >= writeBack {
			// only a hint: the sync at the end of the pull is what counts
			_ = unix.SyncFileRange(fd, started, size-started, unix.SYNC_FILE_RANGE_WRITE)
			started = size
		}
	}
	if sparse {
		if err := unix.Ftruncate(fd, size); err != nil {
			return 0, fmt.Errorf("truncate: %w", err)
		}
	}
	return size, nil
}

// fill reads until p is full; the error, io.EOF included, may come with bytes.
func fill(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

var zeros [block]byte

// put writes p at offset off; with sparse, whole blocks of zeros become holes.
func put(fd int, p []byte, off int64, sparse bool) error {
	for len(p) > 0 {
		n := len(p)
		if sparse {
			n = min(n, block)
			if bytes.Equal(p[:n], zeros[:n]) {
				p, off = p[n:], off+int64(n)
				continue
			}
		}
		w, err := unix.Pwrite(fd, p[:n], off)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		p, off = p[max(w, 0):], off+int64(max(w, 0))
	}
	return nil
}

func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for k := range hdr.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

const xattrPrefix = "SCHILY.xattr."

// permissions are the mode's permission bits with set-id and sticky.
func permissions(hdr *tar.Header) uint32 { return uint32(hdr.Mode) & 0o7777 }

// setFileMetadata sets owner, attributes and mode, in the order in which none undoes another: a
// change of owner clears capabilities and set-id bits.
func (u *unpacker) setFileMetadata(fd int, hdr *tar.Header) error {
	if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
		return fmt.Errorf("chown to %d:%d: %w", hdr.Uid, hdr.Gid, err)
	}
	err := u.eachXattr(hdr, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) })
	if err != nil {
		return err
	}
	if err := unix.Fchmod(fd, permissions(hdr)); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	return nil
}

// setMetadata is setFileMetadata for what cannot be opened for writing.
func (u *unpacker) setMetadata(base string, hdr *tar.Header) error {
	parent := u.parent
	if err := unix.Fchownat(parent, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown to %d:%d: %w", hdr.Uid, hdr.Gid, err)
	}
	path := fmt.Sprintf("/proc/self/fd/%d/%s", parent, base)
	err := u.eachXattr(hdr, func(name string, value []byte) error { return unix.Lsetxattr(path, name, value, 0) })
	if err != nil || hdr.Typeflag == tar.TypeSymlink {
		return err
	}
	// base is no symbolic link: it was created or checked through this descriptor
	if err := unix.Fchmodat(parent, base, permissions(hdr), 0); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	return nil
}

// eachXattr sets the extended attributes of hdr. Overlayfs's own are left out: in a layer they would
// redirect lookups. So are those that the file system or the kind of file cannot have.
func (u *unpacker) eachXattr(hdr *tar.Header, set func(string, []byte) error) error {
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok || strings.HasPrefix(name, overlayXattrs) {
			continue
		}
		u.xattrs = true
		err := set(name, []byte(value))
		switch {
		case err == nil, errors.Is(err, unix.ENOTSUP):
		case errors.Is(err, unix.EPERM) && strings.HasPrefix(name, "user.") && hdr.Typeflag != tar.TypeReg && hdr.Typeflag != tar.TypeDir:
		default:
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	return nil
}

func nodeMode(typeflag byte) uint32 {
	switch typeflag {
	case tar.TypeChar:
		return unix.S_IFCHR
	case tar.TypeBlock:
		return unix.S_IFBLK
	}
	return unix.S_IFIFO
}

func nodeDevice(hdr *tar.Header) int {
	if hdr.Typeflag == tar.TypeFifo {
		return 0
	}
	return int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
}

// times are an entry's access and modification time.
type times [2]unix.Timespec

func timesOf(hdr *tar.Header) times {
	atime := hdr.AccessTime
	if atime.IsZero() {
		atime = hdr.ModTime
	}
	return times{timespec(atime), timespec(hdr.ModTime)}
}

func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// set sets the times of base in the directory dir.
func (ts times) set(dir int, base string) error {
	if err := unix.UtimesNanoAt(dir, base, ts[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// removeTree removes base in parent with all below it. No symbolic link is followed.
func removeTree(parent int, base string) error {
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	d := os.NewFile(uintptr(fd), base)
	defer func() { _ = d.Close() }()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		err := unix.Unlinkat(fd, name, 0)
		if errors.Is(err, unix.EISDIR) {
			err = removeTree(fd, name)
		}
		if err != nil {
			return err
		}
	}
	return unix.Unlinkat(parent, base, unix.AT_REMOVEDIR)
}
