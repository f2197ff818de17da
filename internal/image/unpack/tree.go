package unpack

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"
	overlayXattrs  = "trusted.overlay."

	maxLinks = 255 // symbolic links followed in one path
)

// tree is a layer's directory while it grows. Nobody else changes it.
type tree struct {
	root       int
	parent     int    // descriptor of the directory entered last
	parentName string // its name as entries wrote it; "" when none is open
	implicit   map[string]struct{}
	xattrs     bool // anything has been given extended attributes
}

func (t *tree) close() {
	t.leave()
	_ = unix.Close(t.root)
}

func (t *tree) leave() {
	if t.parentName != "" {
		_ = unix.Close(t.parent)
		t.parentName = ""
	}
}

// enter makes dir the directory in which entries are created, making what is missing of it.
func (t *tree) enter(dir string) error {
	if t.parentName == dir {
		return nil
	}
	t.leave()
	fd, err := t.open(dir)
	if errors.Is(err, unix.ENOENT) {
		fd, err = t.make(dir)
	}
	if err != nil {
		return fmt.Errorf("directory %q: %w", dir, err)
	}
	t.parent, t.parentName = fd, dir
	return nil
}

// open opens the directory dir; symbolic links are followed as if the layer's root were the root.
func (t *tree) open(dir string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(t.root, dir, &how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// make walks to dir one component at a time, following symbolic links inside the root and making
// what is missing. It returns a descriptor of dir.
func (t *tree) make(dir string) (int, error) {
	var at []string // resolved, without links
	todo := strings.Split(dir, "/")
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = at[:max(len(at)-1, 0)]
			continue
		}
		target, err := t.step(path.Join(at...), name)
		if err != nil {
			return -1, err
		}
		if target == "" {
			at = append(at, name)
			continue
		}
		if links++; links > maxLinks {
			return -1, unix.ELOOP
		}
		if strings.HasPrefix(target, "/") {
			at = nil
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return t.open(path.Join(append([]string{"."}, at...)...))
}

// step makes the directory name in dir if nothing is there. It returns the target of the symbolic
// link that is there, if one is.
func (t *tree) step(dir, name string) (link string, err error) {
	fd, err := t.open(path.Join(".", dir))
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	err = unix.Mkdirat(fd, name, 0o755)
	if err == nil {
		t.implicit[path.Join(dir, name)] = struct{}{}
		return "", unix.Fchmodat(fd, name, 0o755, 0) // the umask must not matter
	}
	if !errors.Is(err, unix.EEXIST) {
		return "", err
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, name, buf)
	if errors.Is(err, unix.EINVAL) {
		return "", nil // a directory, or open says that it is none
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// clear removes what is at base in the directory entered, but for a directory when another comes in
// its place.
func (t *tree) clear(name, base string, keepDir bool) (wasWhiteout, exists bool, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(t.parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return false, false, nil
	case err != nil:
		return false, false, fmt.Errorf("stat: %w", err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		if err := unix.Unlinkat(t.parent, base, 0); err != nil {
			return false, false, fmt.Errorf("replace: %w", err)
		}
		return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0, false, nil
	case keepDir:
		return false, true, nil
	}
	for dir := range t.implicit {
		if dir == name || strings.HasPrefix(dir, name+"/") {
			delete(t.implicit, dir)
		}
	}
	if err := removeTree(t.parent, base); err != nil {
		return false, false, fmt.Errorf("replace: %w", err)
	}
	return false, false, nil
}

// whiteout turns the marker base in the directory entered into overlayfs form.
func (t *tree) whiteout(base string) error {
	if base == whiteoutOpaque {
		return t.opaque(".")
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil // aufs kept its own books under such names
	}
	gone := strings.TrimPrefix(base, whiteoutPrefix)
	if gone == "" || gone == "." || gone == ".." {
		return fmt.Errorf("whiteout of %q: %w", gone, errdefs.ErrInvalidArgument)
	}
	var st unix.Stat_t
	err := unix.Fstatat(t.parent, gone, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		if err = unix.Mknodat(t.parent, gone, unix.S_IFCHR, 0); err != nil {
			return fmt.Errorf("whiteout: %w", err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("whiteout: %w", err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return t.opaque(gone) // this layer removes the lower directory and brings its own
	}
	return nil // a file of this layer hides the lower one anyway
}

// opaque hides what lower layers have in the directory name below the one entered.
func (t *tree) opaque(name string) error {
	fd, err := unix.Openat(t.parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opaque directory: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	t.xattrs = true
	if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
		return fmt.Errorf("opaque directory: %w", err)
	}
	return nil
}
