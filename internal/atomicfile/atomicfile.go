// Package atomicfile replaces files whole: a reader, and a successor after a crash of the process,
// sees the old content or the new, never a part.
package atomicfile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const prefix = ".tmp-"

// Write replaces path by data without syncing: after a power cut the file may be old, empty or
// missing. The mode applies to the new file. A process killed in it may leave a temporary file.
func Write(path string, data []byte, mode os.FileMode) error {
	return write(path, data, mode, func(*os.File) error { return nil }, swap)
}

// WriteSync replaces path by data and returns when file and directory are on the disk, so that a
// power cut finds the old content or the new.
func WriteSync(path string, data []byte, mode os.FileMode) error {
	if err := write(path, data, mode, (*os.File).Sync, os.Rename); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes the entries of dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer func() { _ = d.Close() }()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

// IsTemporary says whether name is what an interrupted Write left behind.
func IsTemporary(name string) bool { return strings.HasPrefix(filepath.Base(name), prefix) }

func write(path string, data []byte, mode os.FileMode, sync func(*os.File) error, rename func(from, to string) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), prefix+filepath.Base(path)+"-")
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
			err = fmt.Errorf("replace %s: %w", path, err)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if err = sync(f); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return rename(f.Name(), path)
}

// swap is a rename for a file that need not reach the disk. Where there is one already the two change
// names (rename(2), RENAME_EXCHANGE) and the old one is deleted: a rename over a file makes ext4 write
// the new one out at once (ext4(5), auto_da_alloc), which costs several times as much as all the rest.
func swap(from, to string) error {
	if info, err := os.Lstat(to); err != nil || !info.Mode().IsRegular() {
		return os.Rename(from, to)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE); err != nil {
		return os.Rename(from, to) // not every file system can exchange
	}
	_ = os.Remove(from)
	return nil
}
