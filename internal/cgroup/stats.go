package cgroup

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

// unlimited is where a memory limit of v1 means none: the kernel shows the largest multiple of a
// page, which differs between architectures.
const unlimited = 1 << 62

// Read reads the statistics of a cgroup and of everything below it. What the kernel does not account
// stays zero. An absent cgroup is errdefs.ErrNotFound.
func (f *FS) Read(cgroup string) (*pod.Stats, error) {
	var s pod.Stats
	if err := f.with(cgroup, func(r *reader) { f.readStats(r, cgroup, &s) }); err != nil {
		return nil, err
	}
	return &s, nil
}

// with lends read a reader of its own.
func (f *FS) with(cgroup string, read func(*reader)) error {
	if err := check(cgroup); err != nil {
		return err
	}
	r := readers.Get().(*reader)
	defer readers.Put(r)
	r.files, r.err = 0, nil
	read(r)
	r.close()
	if r.err != nil {
		return fmt.Errorf("statistics of cgroup %s: %w", cgroup, r.err)
	}
	if r.files == 0 {
		return fmt.Errorf("cgroup %s: %w", cgroup, errdefs.ErrNotFound)
	}
	return nil
}

func (f *FS) readStats(r *reader, cgroup string, s *pod.Stats) {
	s.At = time.Now()
	if f.mode == V2 {
		r.readV2(filepath.Join(f.unified, cgroup), s)
	} else {
		r.readV1(f.v1(cgroup), s)
	}
}

// v1 returns what gives the directory of the cgroup in a controller's hierarchy, "" without one.
func (f *FS) v1(cgroup string) func(controller string) string {
	return func(controller string) string {
		if h, ok := f.controllers[controller]; ok {
			return filepath.Join(h, cgroup)
		}
		return ""
	}
}

func (r *reader) readV2(dir string, s *pod.Stats) {
	r.keyed(dir, "cpu.stat", func(key []byte, value uint64) {
		if string(key) == "usage_usec" {
			s.CPUUsage = micros(value)
		}
	})
	var inactive uint64
	r.keyed(dir, "memory.stat", func(key []byte, value uint64) {
		switch string(key) {
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
	if limit, ok := r.limit(dir, "memory.swap.max"); ok {
		s.SwapLimit = &limit
	}
	s.Processes = r.number(dir, "pids.current")
	s.CPUStall = r.stall(dir, "cpu.pressure")
	s.MemoryStall = r.stall(dir, "memory.pressure")
	s.IOStall = r.stall(dir, "io.pressure")
}

func (r *reader) readV1(dir func(controller string) string, s *pod.Stats) {
	s.CPUUsage = time.Duration(r.number(dir("cpuacct"), "cpuacct.usage"))
	var inactive uint64
	r.keyed(dir("memory"), "memory.stat", func(key []byte, value uint64) {
		switch string(key) {
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
	// This one bounds memory and swap together.
	if both, ok := r.limit(dir("memory"), "memory.memsw.limit_in_bytes"); ok && both < unlimited {
		swap := less(both, s.MemoryLimit)
		s.SwapLimit = &swap
	}
	s.Processes = r.number(dir("pids"), "pids.current")
}

func less(usage, inactive uint64) uint64 {
	if inactive > usage {
		return 0
	}
	return usage - inactive
}

func micros(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }
