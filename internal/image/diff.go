package image

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/image/unpack"
)

// Diff writes what the root file system of a prepared container has and its image has not as a tar, and
// returns the paths that the image has and it has not. Nothing may change the files meanwhile. A key that
// is not prepared is ErrNotFound.
func (s *Store) Diff(ctx context.Context, key string, w io.Writer) (deleted []string, err error) {
	s.mu.Lock()
	info := s.containers[key]
	s.mu.Unlock()
	if info == nil {
		return nil, fmt.Errorf("root file system of %s: %w", key, errdefs.ErrNotFound)
	}
	d := &differ{
		upper: filepath.Join(s.containerDir(key), "upper"), merged: filepath.Join(s.containerDir(key), "rootfs"),
		tar: tar.NewWriter(w), inodes: make(map[uint64]string),
	}
	for _, l := range slices.Backward(info.Layers) {
		d.lowers = append(d.lowers, s.layerPath(l.Name))
	}
	err = filepath.WalkDir(d.upper, func(path string, entry fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		return d.entry(path, entry)
	})
	if err == nil {
		err = d.tar.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("changes of root file system of %s: %w", key, err)
	}
	slices.Sort(d.deleted)
	return d.deleted, nil
}

type differ struct {
	upper, merged string
	lowers        []string // the uppermost first
	tar           *tar.Writer
	deleted       []string
	inodes        map[uint64]string // names of files with several, by inode
}

func (d *differ) entry(path string, entry fs.DirEntry) error {
	name, err := filepath.Rel(d.upper, path)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 { // overlayfs' sign for a deleted name
		if d.below(name) {
			d.deleted = append(d.deleted, name)
		}
		return nil
	}
	if name != "." && entry.IsDir() && opaque(path) {
		d.hidden(name)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK { // no tar has one
		return nil
	}
	return d.write(path, name, &st)
}

// below says whether the image has the name.
func (d *differ) below(name string) bool {
	for _, l := range d.lowers {
		if _, err := os.Lstat(filepath.Join(l, name)); err == nil {
			return true
		}
	}
	return false
}

func opaque(dir string) bool {
	var value [1]byte
	n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", value[:])
	return err == nil && n == 1 && value[0] == 'y'
}

// hidden adds what an opaque directory hides of the image's and has not itself.
func (d *differ) hidden(dir string) {
	for _, l := range d.lowers {
		entries, err := os.ReadDir(filepath.Join(l, dir))
		if err != nil {
			continue // not in this layer
		}
		for _, e := range entries {
			name := filepath.Join(dir, e.Name())
			if _, err := os.Lstat(filepath.Join(d.merged, name)); errors.Is(err, fs.ErrNotExist) && !slices.Contains(d.deleted, name) {
				d.deleted = append(d.deleted, name)
			}
		}
	}
}

func (d *differ) write(path, name string, st *unix.Stat_t) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(path); err != nil {
			return err
		}
	}
	hdr, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	hdr.Name, hdr.Uname, hdr.Gname, hdr.Format = name, "", "", tar.FormatPAX
	if info.IsDir() {
		hdr.Name += "/"
	}
	if info.Mode().IsRegular() && st.Nlink > 1 {
		if first, ok := d.inodes[st.Ino]; ok {
			hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, first, 0
			return d.tar.WriteHeader(hdr)
		}
		d.inodes[st.Ino] = name
	}
	if err = readXattrs(path, hdr); err != nil {
		return err
	}
	if err = d.tar.WriteHeader(hdr); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = io.CopyN(d.tar, f, hdr.Size)
	return err
}

// readXattrs adds the extended attributes of a file, but those of overlayfs and of SELinux: the one are
// the mount's, the other the node's.
func readXattrs(path string, hdr *tar.Header) error {
	size, err := unix.Llistxattr(path, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && size == 0 {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "listxattr", Path: path, Err: err}
	}
	names := make([]byte, size)
	if size, err = unix.Llistxattr(path, names); err != nil {
		return &fs.PathError{Op: "listxattr", Path: path, Err: err}
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:size]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "trusted.overlay.") || name == "security.selinux" {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return &fs.PathError{Op: "getxattr", Path: path, Err: err}
		}
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = make(map[string]string)
		}
		hdr.PAXRecords["SCHILY.xattr."+name] = string(value[:n])
	}
	return nil
}

// PrepareFrom is Prepare for a container that begins with what Diff wrote of another: the tar diff, and
// the paths deleted, which must lie in it.
func (s *Store) PrepareFrom(ctx context.Context, m Mount, diff io.Reader, deleted []string) (string, error) {
	m.fill = func(upper string, layers []layerRecord) error { return s.unpackDiff(ctx, upper, layers, diff) }
	root, err := s.Prepare(ctx, m)
	if err != nil {
		return "", err
	}
	dir, err := os.OpenRoot(root)
	if err != nil {
		return "", fmt.Errorf("prepare root file system: %w", err)
	}
	defer func() { _ = dir.Close() }()
	for _, name := range deleted {
		name = strings.TrimPrefix(filepath.Clean("/"+name), "/")
		if name == "" {
			continue
		}
		if err := dir.RemoveAll(name); err != nil {
			return "", fmt.Errorf("prepare root file system: %w", err)
		}
	}
	return root, nil
}

// unpackDiff fills a writable layer, whose root directory is as the image has it.
func (s *Store) unpackDiff(ctx context.Context, upper string, layers []layerRecord, diff io.Reader) error {
	sum, err := unpack.Layer(ctx, upper, diff, s.opts.Limits, nil)
	if err != nil {
		return err
	}
	return s.copyImplicit(upper, layers, sum.Implicit)
}

// copyImplicit gives directories that a diff has and does not describe the owner and mode that the
// image says.
func (s *Store) copyImplicit(upper string, layers []layerRecord, dirs []string) error {
	for _, dir := range dirs {
		for _, l := range slices.Backward(layers) {
			var st unix.Stat_t
			if unix.Lstat(filepath.Join(s.layerPath(l.Name), dir), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
				continue
			}
			path := filepath.Join(upper, dir)
			if err := errors.Join(os.Lchown(path, int(st.Uid), int(st.Gid)), unix.Chmod(path, st.Mode&0o7777)); err != nil {
				return err
			}
			break
		}
	}
	return nil
}

// View shows the root file system of an image to use, which must not change it.
func (s *Store) View(ctx context.Context, imageID string, use func(dir string) error) (err error) {
	key := "view-" + rand.Text()
	defer s.beginView(key)()
	root, err := s.Prepare(ctx, Mount{Key: key, Image: imageID, Volume: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Release(context.WithoutCancel(ctx), key)) }()
	return use(root)
}

// beginView keeps a key that is no container's from those who look for what no container has any more, until done is called.
func (s *Store) beginView(key string) (done func()) {
	set := func(on bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if on {
			s.views[key] = true
		} else {
			delete(s.views, key)
		}
	}
	set(true)
	return func() { set(false) }
}
