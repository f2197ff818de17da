package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/image/tree"
	"gantry/internal/pod"
)

// A layer may hold files in directories that it does not describe: they are a lower layer's, which
// says who owns them and who may enter. Layers are unpacked side by side, each without knowing what
// lies below it in an image, and shared between images. So where a lower layer says something else
// than the default, the image gets a variant of the layer: the same files by hard links, with those
// directories as they should be.

const (
	overlayXattrs = "trusted.overlay."
	opaqueXattr   = "trusted.overlay.opaque"
)

// attributes are what a directory is, apart from its times.
type attributes struct {
	mode     uint32 // permission bits
	uid, gid uint32
	xattrs   map[string]string // without overlayfs's own
}

func (a attributes) isDefault() bool {
	return a.mode == 0o755 && a.uid == 0 && a.gid == 0 && len(a.xattrs) == 0
}

// adapt replaces layers by variants where lower layers describe what they do not. It holds what it
// makes and adds the names to held.
func (s *Store) adapt(ctx context.Context, layers []*layer, held *[]string) error {
	for i, l := range layers {
		changes := make(map[string]attributes)
		for _, dir := range l.record.Implicit {
			a, ok, err := s.inherited(layers[:i], dir)
			if err != nil {
				return fmt.Errorf("directory %q of layer %d: %w", dir, i+1, err)
			}
			if ok && !a.isDefault() {
				changes[dir] = a
			}
		}
		if len(changes) == 0 {
			continue
		}
		v, err := s.variant(ctx, l, changes, held)
		if err != nil {
			return fmt.Errorf("variant of layer %d: %w", i+1, err)
		}
		layers[i] = v
	}
	return nil
}

// inherited returns the attributes that the uppermost of lowers that describes dir gives it.
func (s *Store) inherited(lowers []*layer, dir string) (attributes, bool, error) {
	for _, l := range slices.Backward(lowers) {
		found, hides, err := look(s.layerPath(l.record.Name), dir)
		if err != nil {
			return attributes{}, false, err
		}
		if found && !slices.Contains(l.record.Implicit, dir) {
			a, err := attributesOf(filepath.Join(s.layerPath(l.record.Name), dir))
			return a, err == nil, err
		}
		if hides {
			return attributes{}, false, nil
		}
	}
	return attributes{}, false, nil
}

// look says whether the layer at root has the directory dir, and whether it hides what lower layers
// have there.
func look(root, dir string) (found, hides bool, err error) {
	path := root
	for name := range strings.SplitSeq(dir, "/") {
		path = filepath.Join(path, name) // every part before was a directory: no link is followed
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			if errors.Is(err, unix.ENOENT) {
				return false, hides, nil
			}
			return false, false, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return false, true, nil
		}
		value := make([]byte, 1)
		if n, err := unix.Lgetxattr(path, opaqueXattr, value); err == nil && n == 1 && value[0] == 'y' {
			hides = true
		}
	}
	return true, hides, nil
}

func attributesOf(dir string) (attributes, error) {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return attributes{}, err
	}
	a := attributes{mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid}
	var err error
	a.xattrs, err = xattrsOf(dir)
	return a, err
}

// xattrsOf returns the extended attributes of dir but overlayfs's own.
func xattrsOf(dir string) (map[string]string, error) {
	buf := make([]byte, 64<<10) // no list and no value is longer (xattr(7))
	n, err := unix.Llistxattr(dir, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	all := make(map[string]string)
	for name := range bytes.SplitSeq(bytes.Clone(buf[:n]), []byte{0}) {
		if len(name) == 0 || strings.HasPrefix(string(name), overlayXattrs) {
			continue
		}
		n, err := unix.Lgetxattr(dir, string(name), buf)
		if err != nil {
			return nil, err
		}
		all[string(name)] = string(buf[:n])
	}
	return all, nil
}

// set gives dir the attributes.
func (a attributes) set(dir string) error {
	if err := os.Lchown(dir, int(a.uid), int(a.gid)); err != nil {
		return err
	}
	for name, value := range a.xattrs {
		if err := unix.Lsetxattr(dir, name, []byte(value), 0); err != nil {
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	return unix.Chmod(dir, a.mode)
}

// variant returns l with changes, made before or made now.
func (s *Store) variant(ctx context.Context, l *layer, changes map[string]attributes, held *[]string) (*layer, error) {
	name := variantName(l, changes)
	s.hold([]string{name})
	*held = append(*held, name)
	if v := s.sound(name); v != nil {
		return v, nil
	}
	v, _, err := s.fetches.do(ctx, name, nil, s.unlessSound(name, func(ctx context.Context, _ func(pod.LayerProgress)) (*layer, error) {
		return s.makeVariant(ctx, l, name, changes)
	}))
	return v, err
}

func variantName(l *layer, changes map[string]attributes) string {
	h := sha256.New()
	fmt.Fprint(h, l.record.identity())
	for _, dir := range slices.Sorted(maps.Keys(changes)) {
		a := changes[dir]
		fmt.Fprintf(h, "\x00%q %o %d %d", dir, a.mode, a.uid, a.gid)
		for _, x := range slices.Sorted(maps.Keys(a.xattrs)) {
			fmt.Fprintf(h, " %q=%q", x, a.xattrs[x])
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:nameLength]
}

func (s *Store) makeVariant(ctx context.Context, l *layer, name string, changes map[string]attributes) (_ *layer, err error) {
	st, err := s.stage("variant")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, st.remove()) }()
	if err = linkTree(s.layerPath(l.record.Name), st.dir(), changes); err != nil {
		return nil, err
	}
	err = tree.Derive(s.treePath(l.record.Name), st.record(), func(e *tree.Entry) {
		if a, ok := changes[e.Path]; ok {
			e.Mode, e.UID, e.GID = e.Mode&unix.S_IFMT|a.mode, a.uid, a.gid
			e.Xattrs = withOpaque(a.xattrs, e.Xattrs)
		}
	})
	if errdefs.IsDataLoss(err) {
		return nil, errors.Join(err, s.markDamaged(l.record.Name))
	}
	if err != nil {
		return nil, err
	}
	r := l.record
	r.Name, r.Implicit = name, nil
	v := r.layer()
	return v, s.install(ctx, v, st)
}

// withOpaque returns xattrs with the mark of an opaque directory if old has it.
func withOpaque(xattrs, old map[string]string) map[string]string {
	value, ok := old[opaqueXattr]
	if !ok {
		return xattrs
	}
	all := maps.Clone(xattrs)
	if all == nil {
		all = make(map[string]string)
	}
	all[opaqueXattr] = value
	return all
}

// linkTree makes dst, an empty directory, a copy of the tree src whose files are hard links. Directories
// are as in src but for changes.
func linkTree(src, dst string, changes map[string]attributes) error {
	var dirs []string
	err := filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		if !d.IsDir() {
			return os.Link(path, filepath.Join(dst, rel))
		}
		dirs = append(dirs, rel)
		if rel == "." {
			return nil
		}
		return os.Mkdir(filepath.Join(dst, rel), 0o700)
	})
	if err != nil {
		return err
	}
	for _, rel := range slices.Backward(dirs) { // children first: making them changes their parents' times
		if err := copyDir(filepath.Join(src, rel), filepath.Join(dst, rel), changes[rel]); err != nil {
			return err
		}
	}
	return nil
}

// copyDir makes the directory dst what src is, or what change says if it says anything.
func copyDir(src, dst string, change attributes) error {
	a, err := attributesOf(src)
	if err != nil {
		return err
	}
	if change.mode != 0 || change.xattrs != nil {
		a = change
	}
	if err := a.set(dst); err != nil {
		return err
	}
	value := make([]byte, 1)
	if n, err := unix.Lgetxattr(src, opaqueXattr, value); err == nil {
		if err := unix.Lsetxattr(dst, opaqueXattr, value[:n], 0); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, dst, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}
