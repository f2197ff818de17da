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
		if kill(pid) == nil {
			killed++
		}
	}
	return killed
}

// kill kills a process that need not be a child and waits until all its threads are gone: as long as one of
// them is there, so are its locks and sockets.
func kill(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill %d: %w", pid, err)
	}
	ended := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		_, err = unix.Poll(ended, int(killTime.Milliseconds()))
	}
	if err == nil && ended[0].Revents == 0 {
		err = fmt.Errorf("process %d outlives SIGKILL by %s", pid, killTime)
	}
	return err
}

// killTime is how long a killed process may take until it is gone.
const killTime = 10 * time.Second
