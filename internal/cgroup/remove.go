package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// A killed process leaves its cgroup within moments, unless it hangs in the kernel: the pauses
// between tries double, and after patience Remove gives up with EBUSY.
const (
	firstPause = time.Millisecond
	longPause  = 100 * time.Millisecond
	patience   = 5 * time.Second
)

// Remove kills what is in the cgroup and removes it with everything below it, from every hierarchy.
// Absent is no error. When the processes do not end it returns an error that wraps EBUSY, after some
// seconds or when ctx ends.
func (f *FS) Remove(ctx context.Context, cgroup string) error {
	if err := check(cgroup); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		err := f.removeAll(cgroup)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if kill := f.Kill(cgroup); kill != nil {
			return kill
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}

// RemoveEmpty removes the cgroup from every hierarchy where nothing is in it, neither a process nor
// another cgroup: one without a process may be somebody's who is about to enter it. Where something
// is, it returns an error that wraps EBUSY.
func (f *FS) RemoveEmpty(cgroup string) error {
	if err := check(cgroup); err != nil {
		return err
	}
	var errs []error
	for _, h := range f.hierarchies {
		if err := unix.Rmdir(filepath.Join(h, cgroup)); err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", filepath.Join(h, cgroup), err))
		}
	}
	if f.unmounted != "" {
		_ = unix.Rmdir(filepath.Join(f.unmounted, cgroup)) // an ordinary directory, if anything
	}
	return errors.Join(errs...)
}

func (f *FS) removeAll(cgroup string) error {
	var errs []error
	for _, h := range f.hierarchies {
		if err := removeTree(filepath.Join(h, cgroup)); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	if f.unmounted != "" {
		if err := os.RemoveAll(filepath.Join(f.unmounted, cgroup)); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

func removeTree(dir string) error {
	// A leaf, the usual case, goes in one call.
	if err := unix.Rmdir(dir); err == nil || gone(err) {
		return nil
	}
	var dirs []string
	err := walk(dir, func(d string) error {
		dirs = append(dirs, d)
		return nil
	})
	if err != nil {
		return err
	}
	for _, d := range slices.Backward(dirs) {
		if err := unix.Rmdir(d); err != nil && !gone(err) {
			return &fs.PathError{Op: "rmdir", Path: d, Err: err}
		}
	}
	return nil
}

// Kill sends SIGKILL to every process in the cgroup and below it, and returns without waiting for
// their end. Absent is no error.
func (f *FS) Kill(cgroup string) error {
	if err := check(cgroup); err != nil {
		return err
	}
	if f.mode == V2 {
		// cgroup.kill is atomic against fork; Linux has it since 5.14.
		err := writeExisting(filepath.Join(f.unified, cgroup, "cgroup.kill"), "1")
		if err == nil {
			return nil
		}
		if !gone(err) {
			return fmt.Errorf("kill cgroup %s: %w", cgroup, err)
		}
	}
	thaw := f.freeze(cgroup)
	defer thaw()
	pids, err := f.Pids(cgroup)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if pid == os.Getpid() {
			continue
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d of cgroup %s: %w", pid, cgroup, err)
		}
	}
	return nil
}

// freeze stops the processes, so that none forks while they are listed, and returns what lets them
// go on. Without a freezer both do nothing: the caller kills until none is left.
func (f *FS) freeze(cgroup string) (thaw func()) {
	name, frozen, thawed := filepath.Join(f.controllers["freezer"], cgroup, "freezer.state"), "FROZEN", "THAWED"
	if f.mode == V2 {
		name, frozen, thawed = filepath.Join(f.unified, cgroup, "cgroup.freeze"), "1", "0"
	}
	if writeExisting(name, frozen) != nil {
		return func() {}
	}
	return func() { _ = writeExisting(name, thawed) }
}

func writeExisting(name, value string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = f.WriteString(value)
	return err
}

// gone says whether err means that a cgroup vanished: the kernel answers ENODEV to a read from an
// open file of one.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}
