package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// unlimited is where a memory limit of v1 means none: the kernel shows the largest multiple of a
// page, which differs between architectures.
const unlimited = 1 << 62

// Read reads the statistics of a cgroup. What the kernel does not account stays zero. An absent
// cgroup is errdefs.ErrNotFound.
func (f *FS) Read(cgroup string) (*pod.Stats, error) {
	if err := check(cgroup); err != nil {
		return nil, err
	}
	r := reader{stats: pod.Stats{At: time.Now()}}
	if f.mode == V2 {
		r.readV2(filepath.Join(f.unified, cgroup))
	} else {
		r.readV1(f.controllers, cgroup)
	}
	if r.err != nil {
		return nil, fmt.Errorf("statistics of cgroup %s: %w", cgroup, r.err)
	}
	if r.files == 0 {
		return nil, fmt.Errorf("cgroup %s: %w", cgroup, errdefs.ErrNotFound)
	}
	return &r.stats, nil
}

// reader reads the files of one cgroup through one buffer and keeps the first error.
type reader struct {
	stats pod.Stats
	files int // that exist
	err   error
	buf   [8192]byte
}

func (r *reader) readV2(dir string) {
	s := &r.stats
	r.keyed(dir, "cpu.stat", func(key string, value uint64) {
		if key == "usage_usec" {
			s.CPUUsage = time.Duration(value) * time.Microsecond
		}
	})
	var inactive uint64
	r.keyed(dir, "memory.stat", func(key string, value uint64) {
		switch key {
		case "inactive_file":
			inactive = value
		case "anon":
			s.MemoryRSS = value
		case "pgfault":
			s.PageFaults = value
		case "pgmajfault":
			s.MajorPageFaults = value
		}
	})
	s.MemoryUsage = r.number(dir, "memory.current")
	s.MemoryWorkingSet = less(s.MemoryUsage, inactive)
	s.MemoryLimit = r.number(dir, "memory.max")
	s.SwapUsage = r.number(dir, "memory.swap.current")
	s.Processes = r.number(dir, "pids.current")
}

func (r *reader) readV1(controllers map[string]string, cgroup string) {
	s := &r.stats
	dir := func(controller string) string {
		if h, ok := controllers[controller]; ok {
			return filepath.Join(h, cgroup)
		}
		return ""
	}
	s.CPUUsage = time.Duration(r.number(dir("cpuacct"), "cpuacct.usage"))
	var inactive uint64
	r.keyed(dir("memory"), "memory.stat", func(key string, value uint64) {
		switch key {
		case "total_inactive_file":
			inactive = value
		case "total_rss":
			s.MemoryRSS = value
		case "total_pgfault":
			s.PageFaults = value
		case "total_pgmajfault":
			s.MajorPageFaults = value
		case "total_swap":
			s.SwapUsage = value
		}
	})
	s.MemoryUsage = r.number(dir("memory"), "memory.usage_in_bytes")
	s.MemoryWorkingSet = less(s.MemoryUsage, inactive)
	if limit := r.number(dir("memory"), "memory.limit_in_bytes"); limit < unlimited {
		s.MemoryLimit = limit
	}
	s.Processes = r.number(dir("pids"), "pids.current")
}

func less(usage, inactive uint64) uint64 {
	if inactive > usage {
		return 0
	}
	return usage - inactive
}

// number reads a file that holds one number; "max" is 0.
func (r *reader) number(dir, name string) uint64 {
	n, err := strconv.ParseUint(string(bytes.TrimSpace(r.read(dir, name))), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// keyed reads a file of lines "key value".
func (r *reader) keyed(dir, name string, each func(key string, value uint64)) {
	for line := range bytes.Lines(r.read(dir, name)) {
		key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(string(value), 10, 64); err == nil {
			each(string(key), n)
		}
	}
}

// read returns a file's content, valid until the next read. A file that is not there is empty.
func (r *reader) read(dir, name string) []byte {
	if dir == "" || r.err != nil {
		return nil
	}
	fd, err := unix.Open(filepath.Join(dir, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		r.fail(err)
		return nil
	}
	defer func() { _ = unix.Close(fd) }()
	n := 0
	for n < len(r.buf) {
		more, err := unix.Read(fd, r.buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			r.fail(err)
			return nil
		}
		if more == 0 {
			r.files++
			return r.buf[:n]
		}
		n += more
	}
	r.fail(fmt.Errorf("%s: %w", name, io.ErrShortBuffer))
	return nil
}

func (r *reader) fail(err error) {
	if !gone(err) {
		r.err = err
	}
}
