package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// endGroup kills what is in a cgroup and below it, in every hierarchy, and removes it.
func endGroup(group string) error {
	tops, err := filepath.Glob("/sys/fs/cgroup/*/" + group)
	if err != nil {
		return err
	}
	tops = append(tops, "/sys/fs/cgroup/"+group)
	for killed := 1; killed > 0; {
		killed = 0
		for _, top := range tops {
			for _, dir := range directories(top) {
				killed += killAll(dir)
			}
		}
	}
	var errs []error
	for _, top := range tops {
		for _, dir := range slices.Backward(directories(top)) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}

// directories returns a directory and those below it, parents first.
func directories(top string) []string {
	var all []string
	_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all = append(all, path)
		}
		return nil
	})
	return all
}

// killAll kills the processes of a cgroup, waits until they are gone, and returns how many there were.
func killAll(dir string) (killed int) {
	data, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	for field := range strings.FieldsSeq(string(data)) {
		pid, err := strconv.Atoi(field)
		if err != nil || pid <= 1 {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		killed++
		_ = unix.Kill(pid, unix.SIGKILL)
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int((10 * time.Second).Milliseconds()))
		}
		_ = unix.Close(fd)
	}
	return killed
}
