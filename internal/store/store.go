// Package store is the journal of pods and containers: one small JSON file each, written by rename,
// so that a person can read it and a successor of a killed server finds every record old or new.
//
// Writes are not synced: after a power cut every container is dead anyway, and whatever no record
// names is collected as garbage. Exits are the exception: they are synced in batches, off the path
// of the caller, within a second.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/atomicfile"
	"gantry/internal/pod"
)

const (
	podsDir       = "pods"
	containersDir = "containers"
	badDir        = "bad"
	suffix        = ".json"

	// syncDelay is how long exits gather before they are synced together.
	syncDelay = 500 * time.Millisecond
)

// Store is the journal below one directory. Calls about different keys may run at once; calls about
// one key are the caller's to order.
type Store struct {
	dir  string
	boot string
	hook func(point string) // never nil

	// Lock order: syncing before mu.
	syncing sync.Mutex // held by the one sync under way
	mu      sync.Mutex
	dirty   map[string]struct{} // paths to sync; guarded by mu
	timer   *time.Timer         // set while a sync is due; guarded by mu
	closed  bool                // guarded by mu
}

// Loaded is what the journal holds.
type Loaded struct {
	Pods       []Pod
	Containers []Container
	// SetAside are the files that could not be read as records. They were moved away, not deleted.
	SetAside []SetAside
}

// Pod is a sandbox's record. OldBoot says that it was written before the machine last started.
type Pod struct {
	*pod.Sandbox
	OldBoot bool
}

// Container is a container's record.
type Container struct {
	*pod.Container
	OldBoot bool
}

// SetAside is a file that was no record this version can read.
type SetAside struct {
	Path   string // where it is now
	Reason error
}

// Open opens the journal below dir, making its directories. Boot is the machine's boot id (BootID).
func Open(dir, boot string) (*Store, error) {
	for _, d := range []string{podsDir, containersDir, badDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("open journal: %w", classify(err))
		}
	}
	return &Store{dir: dir, boot: boot, hook: func(string) {}, dirty: make(map[string]struct{})}, nil
}

// OnPoint has hook called before and after every change of a file, with the change's name. A hook
// that does not return is a crash there. It is called before the first other method.
func (s *Store) OnPoint(hook func(point string)) { s.hook = hook }

// BootID is the kernel's id of this boot (random(4), /proc/sys/kernel/random/boot_id).
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// PutPod writes a sandbox's record.
func (s *Store) PutPod(sb *pod.Sandbox) error {
	_, err := s.put(podsDir, sb.Spec.Key, &record{Pod: sb})
	return err
}

// PutContainer writes a container's record. An exited one reaches the disk within a second.
func (s *Store) PutContainer(c *pod.Container) error {
	path, err := s.put(containersDir, c.Spec.Key, &record{Container: c})
	if err == nil && c.State == pod.ContainerExited {
		s.syncSoon(path)
	}
	return err
}

// DeletePod forgets a sandbox; one that has no record is no error.
func (s *Store) DeletePod(key pod.Key) error { return s.remove(podsDir, key) }

// DeleteContainer forgets a container; one that has no record is no error.
func (s *Store) DeleteContainer(key pod.Key) error { return s.remove(containersDir, key) }

// Load reads every record. Files that are no record of this version are set aside and reported;
// they never fail the start. The error is about the directories themselves.
func (s *Store) Load() (*Loaded, error) {
	l := &Loaded{}
	err := s.each(podsDir, l, func(r *record) bool {
		if r.Pod == nil {
			return false
		}
		l.Pods = append(l.Pods, Pod{Sandbox: r.Pod, OldBoot: r.Boot != s.boot})
		return true
	})
	if err != nil {
		return nil, err
	}
	err = s.each(containersDir, l, func(r *record) bool {
		if r.Container == nil {
			return false
		}
		l.Containers = append(l.Containers, Container{Container: r.Container, OldBoot: r.Boot != s.boot})
		return true
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Close syncs what is waiting for it. Records may still be written afterwards, but no more synced.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	return s.sync()
}

func (s *Store) put(kind string, key pod.Key, r *record) (string, error) {
	path, err := s.path(kind, key)
	if err != nil {
		return "", err
	}
	r.Version, r.Boot = Version, s.boot
	data, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("encode record %s: %w", key.Short(), err)
	}
	s.hook("journal/write " + r.what())
	if err := atomicfile.Write(path, data, 0o600); err != nil {
		return "", fmt.Errorf("write record: %w", classify(err))
	}
	s.hook("journal/wrote " + r.what())
	return path, nil
}

func (s *Store) remove(kind string, key pod.Key) error {
	path, err := s.path(kind, key)
	if err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.dirty, path)
	s.mu.Unlock()
	s.hook("journal/delete from " + kind)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete record: %w", classify(err))
	}
	s.hook("journal/deleted from " + kind)
	return nil
}

func (s *Store) path(kind string, key pod.Key) (string, error) {
	if key == "" || strings.ContainsAny(string(key), "/\x00") || key[0] == '.' {
		return "", fmt.Errorf("journal key %q: %w", key, errdefs.ErrInvalidArgument)
	}
	return filepath.Join(s.dir, kind, string(key)+suffix), nil
}

// each reads the records of one kind. Take refuses a record of another kind.
func (s *Store) each(kind string, l *Loaded, take func(*record) bool) error {
	dir := filepath.Join(s.dir, kind)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if atomicfile.IsTemporary(path) {
			_ = os.Remove(path) // a write that was interrupted; the record it was for is whole
			continue
		}
		r, err := read(path)
		if err == nil && (string(r.key())+suffix != e.Name() || !take(r)) {
			err = fmt.Errorf("not the record that its name says: %w", errdefs.ErrDataLoss)
		}
		if err != nil {
			l.SetAside = append(l.SetAside, s.setAside(kind, path, err))
		}
	}
	return nil
}

// setAside moves a file that is no record to where a person may look at it. If even that is
// impossible it stays where it is and is reported at every start.
func (s *Store) setAside(kind, path string, reason error) SetAside {
	to := filepath.Join(s.dir, badDir, kind+"-"+filepath.Base(path))
	if err := os.Rename(path, to); err != nil {
		return SetAside{Path: path, Reason: errors.Join(reason, err)}
	}
	return SetAside{Path: to, Reason: reason}
}

func (s *Store) syncSoon(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.dirty[path] = struct{}{}
	if s.timer == nil {
		s.timer = time.AfterFunc(syncDelay, func() { _ = s.sync() })
	}
}

// sync makes durable what is dirty. A file that is gone meanwhile needs no sync. After an error the
// kernel has dropped the pages, so a repeat would report a success that is none: nothing is retried.
func (s *Store) sync() error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	s.mu.Lock()
	dirty := s.dirty
	s.dirty, s.timer = make(map[string]struct{}), nil
	s.mu.Unlock()
	if len(dirty) == 0 {
		return nil
	}
	var errs []error
	for path := range dirty {
		if err := syncFile(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, atomicfile.SyncDir(filepath.Join(s.dir, containersDir)))
	return errors.Join(errs...)
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync record: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync record: %w", err)
	}
	return nil
}

// classify marks a full disk, which ends by itself once there is room.
func classify(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}
