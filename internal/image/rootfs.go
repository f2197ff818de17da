package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"gantry/internal/atomicfile"
	"gantry/internal/netns"
)

// rootInfo is what a prepared container refers to: containers/<key>/info.json.
type rootInfo struct {
	Image  string        `json:"image"`
	Layers []layerRecord `json:"layers"` // the lowest first
	Volume bool          `json:"volume,omitempty"`
}

func (s *Store) containerDir(key string) string { return filepath.Join(s.dir(containersDir), key) }

func checkKey(key string) error {
	if key == "" || strings.HasPrefix(key, ".") || strings.ContainsAny(key, "/\x00") || len(key) > 200 {
		return fmt.Errorf("key %q cannot name a root file system: %w", key, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Mount says what Prepare mounts.
type Mount struct {
	Key   string // names the mount: a container's, or made of it
	Image string // its name or id
	// Volume mounts it without a writable layer, for containers to read. Artifacts can be mounted in no
	// other way: they are no root file system.
	Volume bool
	// IDs, if they have a user namespace, is the pinned one in which files are to belong to the same ids
	// as they do without one.
	IDs netns.Spec
	// Label is the SELinux label of every file; "" leaves them their own.
	Label string

	// fill puts something into the writable layer before it is mounted; nil leaves it empty.
	fill func(upper string, layers []layerRecord) error
}

// Prepare mounts an image and returns the path. A second call with the key returns what the first
// mounted; after a reboot it mounts the same layers again. The layers are shared with all other mounts,
// and the image may be removed while this one is there. An artifact that is to be a root file system is
// ErrFailedPrecondition.
func (s *Store) Prepare(ctx context.Context, m Mount) (string, error) {
	if err := checkKey(m.Key); err != nil {
		return "", err
	}
	unlock, err := s.keys.Lock(ctx, m.Key)
	if err != nil {
		return "", err
	}
	defer unlock()
	path, err := s.prepare(&m)
	if err != nil {
		return "", fmt.Errorf("prepare root file system: %w", err)
	}
	return path, nil
}

func (s *Store) prepare(m *Mount) (_ string, err error) {
	dir := s.containerDir(m.Key)
	root := filepath.Join(dir, "rootfs")
	info, fresh, err := s.claim(m)
	if err != nil {
		return "", err
	}
	if fresh {
		defer func() {
			if err != nil {
				err = errors.Join(err, s.forget(m.Key))
			}
		}()
		if err = s.makeContainer(m.Key, info); err != nil {
			return "", err
		}
	}
	mounted, err := isMounted(root)
	if mounted || err != nil {
		return root, err
	}
	if err = s.copyRoot(filepath.Join(dir, "upper"), info.Layers); err != nil {
		return "", err
	}
	s.opts.Hook("rootfs/recorded")
	if m.fill != nil {
		if err = m.fill(filepath.Join(dir, "upper"), info.Layers); err != nil {
			return "", err
		}
	}
	if m.IDs.User == "" {
		err = s.mount(m, info)
	} else {
		err = s.mountMapped(m, info)
	}
	s.opts.Hook("rootfs/mounted")
	return root, err
}

// claim makes the mount's key refer to the image's layers, so that they stay.
func (s *Store) claim(m *Mount) (info *rootInfo, fresh bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if info = s.containers[m.Key]; info != nil {
		return info, false, nil
	}
	r, err := s.index.find(m.Image)
	if err != nil {
		return nil, false, err
	}
	if r.Artifact != "" && !m.Volume {
		return nil, false, fmt.Errorf("%s is an artifact (%s): it can be mounted as a volume, and is no container image: %w",
			m.Image, r.Artifact, errdefs.ErrFailedPrecondition)
	}
	info = &rootInfo{Image: r.ID, Layers: r.Layers, Volume: m.Volume}
	s.containers[m.Key] = info
	return info, true, nil
}

// makeContainer makes the directories and the record of a container. What a crash left of an earlier
// attempt under this key is removed first.
func (s *Store) makeContainer(key string, info *rootInfo) error {
	dir := s.containerDir(key)
	if _, err := os.Lstat(dir); err == nil {
		if err := unmountContainer(dir); err != nil {
			return err
		}
		if err := s.discard(dir); err != nil {
			return err
		}
		s.projects.release(key)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, d := range []string{"rootfs", "upper", "work", "empty"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if !info.Volume {
		s.projects.assign(key, dir)
	}
	s.opts.Hook("rootfs/directories")
	data, err := json.Marshal(info)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, "info.json"), data, 0o600)
}

// copyRoot gives the uppermost layer, which a volume has too though nobody writes there, the owner and
// mode that the image's root directory has: overlayfs shows those, whatever lower ones say.
func (s *Store) copyRoot(upper string, layers []layerRecord) error {
	for _, l := range slices.Backward(layers) {
		if !l.Root {
			continue
		}
		var st unix.Stat_t
		if err := unix.Lstat(s.layerPath(l.Name), &st); err != nil {
			return fmt.Errorf("root of layer %s: %w", l.Name, err)
		}
		if err := os.Lchown(upper, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
		return unix.Chmod(upper, st.Mode&0o7777)
	}
	return unix.Chmod(upper, 0o755)
}

// Release unmounts the root file system of key and removes its writable layer and what only it
// referred to. A key that is not there is no error.
func (s *Store) Release(ctx context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	unlock, err := s.keys.Lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.forget(key); err != nil {
		return fmt.Errorf("release root file system: %w", err)
	}
	return nil
}

func (s *Store) forget(key string) error {
	dir := s.containerDir(key)
	if err := unmountContainer(dir); err != nil {
		return err
	}
	s.opts.Hook("rootfs/unmounted")
	if _, err := os.Lstat(dir); err == nil {
		if err := s.discard(dir); err != nil {
			return err
		}
	}
	s.mu.Lock()
	delete(s.containers, key)
	s.mu.Unlock()
	s.writable.forget(key)
	s.projects.release(key)
	return s.collect()
}

// Prepared returns the keys of which anything is there, mounted or not. A View that is under way is nobody's to release.
func (s *Store) Prepared(context.Context) ([]string, error) {
	entries, err := os.ReadDir(s.dir(containersDir))
	if err != nil {
		return nil, fmt.Errorf("prepared root file systems: %w", err)
	}
	s.mu.Lock()
	keys, views := maps.Clone(s.containers), maps.Clone(s.views)
	s.mu.Unlock()
	names := slices.Collect(maps.Keys(keys))
	for _, e := range entries {
		if keys[e.Name()] == nil {
			names = append(names, e.Name())
		}
	}
	names = slices.DeleteFunc(names, func(key string) bool { return views[key] })
	slices.Sort(names)
	return names, nil
}

// readContainers loads what containers refer to. One without a readable record was half made: it
// refers to nothing and its key stays in Prepared until it is released.
func (s *Store) readContainers() error {
	entries, err := os.ReadDir(s.dir(containersDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		s.projects.adopt(e.Name(), s.containerDir(e.Name()))
		info, err := s.readContainer(e.Name())
		if err != nil {
			s.log.Warn("prepared root file system has no usable record", slog.String("key", e.Name()), slog.Any("error", err))
			continue
		}
		s.containers[e.Name()] = info
		for _, l := range info.Layers {
			if _, err := os.Lstat(s.layerPath(l.Name)); err == nil && s.layers[l.Name] == nil {
				s.layers[l.Name] = l.layer()
			}
		}
	}
	return nil
}

func (s *Store) readContainer(key string) (*rootInfo, error) {
	data, err := os.ReadFile(filepath.Join(s.containerDir(key), "info.json"))
	if err != nil {
		return nil, err
	}
	var info rootInfo
	if err := json.Unmarshal(data, &info); err != nil {
		return nil, err
	}
	for _, l := range info.Layers {
		if err := checkName(l.Name); err != nil {
			return nil, err
		}
	}
	return &info, nil
}

// unmountContainer unmounts what a container's directory holds. It comes before every removal: the view
// of the layers that a crash may have left there is the layers.
func unmountContainer(dir string) error {
	return errors.Join(unmountAll(filepath.Join(dir, "rootfs")), unmountAll(filepath.Join(dir, viewDir)))
}

func isMounted(path string) (bool, error) {
	mounted, err := mountinfo.Mounted(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return mounted, err
}

// unmountAll unmounts everything at path. A mount that is busy is detached: it goes when its last
// user does.
func unmountAll(path string) error {
	for {
		mounted, err := isMounted(path)
		if err != nil || !mounted {
			return err
		}
		err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: somebody else was faster
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}
