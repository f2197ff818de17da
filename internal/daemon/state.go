package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	lockName  = "server.lock"
	tmpfsSize = "256m" // an upper bound: streams, records and bundles of a full node take a tenth
)

// makeDir makes a directory that others may pass through, because container processes with other
// users do, but not list.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}

// lockState makes sure that dir is on tmpfs and takes the server's lock in it. The lock is free
// again when the returned file is closed or this process ends.
//
// The mount hides what is below it, a lock too; so the directory below is locked while it is mounted.
func lockState(dir string, log *slog.Logger) (*os.File, error) {
	below, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	defer func() { _ = below.Close() }()
	if err = flock(below); err != nil {
		return nil, inUse(dir, err)
	}
	if err = ensureTmpfs(dir); err != nil {
		log.Warn("the state directory is not on tmpfs, streams of containers are written to its disk", "dir", dir, "error", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := flock(lock); err != nil {
		return nil, errors.Join(inUse(dir, err), lock.Close())
	}
	// The pid is for whoever finds the lock taken; the lock does not depend on it.
	if err := lock.Truncate(0); err == nil {
		_, _ = lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return lock, nil
}

func flock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

func inUse(dir string, err error) error {
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("lock state directory %s: %w", dir, err)
	}
	who := ""
	if pid, err := os.ReadFile(filepath.Join(dir, lockName)); err == nil && len(pid) > 0 {
		who = ", process " + strings.TrimSpace(string(pid))
	}
	return fmt.Errorf("another server uses the state directory %s%s: give each its own --state, --root and --listen", dir, who)
}

// ensureTmpfs mounts a tmpfs at dir unless it is on one: what is written there at the speed of
// containers' output does not belong on a disk, and a reboot must forget it.
func ensureTmpfs(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look at file system: %w", err)
	}
	if st.Type == unix.TMPFS_MAGIC {
		return nil
	}
	if err := unix.Mount("gantry", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711,size="+tmpfsSize); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	return nil
}

// removeStaleSocket removes the socket that a server which is gone left at path. Anything else
// there is an error.
func removeStaleSocket(ctx context.Context, path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at socket: %w", err)
	}
	if st.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	there, err := answers(ctx, path)
	if err != nil {
		return fmt.Errorf("ask who listens at the socket: %w", err)
	}
	if there {
		return fmt.Errorf("another server listens at %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}
