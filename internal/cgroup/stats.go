package cgroup

import (
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

// unlimited is where a memory limit of v1 means none: the kernel shows the largest multiple of a
// page, which differs between architectures.
const unlimited = 1 << 62

// Read reads the statistics of a cgroup and of everything below it. What the kernel does not account
// stays zero. An absent cgroup is errdefs.ErrNotFound. The files stay open for a while, for the next time.
func (f *FS) Read(cgroup string) (*pod.Stats, error) {
	var s pod.Stats
	err := f.with(cgroup, func(r *reader) {
		s = pod.Stats{}
		f.readStats(r, &s)
	})
	if err != nil {
		return nil, err
	}
	return &s, nil
}

// Forget closes what Read has left open of a cgroup that is not read again.
func (f *FS) Forget(cgroup string) { f.kept.take(cgroup).close() }

// with lends read a reader of its own, and again, a second one, if what was open before belongs to a
// cgroup that is gone.
func (f *FS) with(cgroup string, read func(*reader)) error {
	if err := check(cgroup); err != nil {
		return err
	}
	r := readers.Get().(*reader)
	defer readers.Put(r)
	for r.stale = true; r.stale; {
		r.cgroup, r.kept = cgroup, f.kept.take(cgroup)
		r.there, r.stale, r.err = 0, false, nil
		read(r)
		r.close()
		if r.stale || r.there == 0 {
			r.kept.close()
		} else {
			f.kept.give(cgroup, r.kept)
		}
		r.kept = nil
	}
	if r.err != nil {
		return fmt.Errorf("statistics of cgroup %s: %w", cgroup, r.err)
	}
	if r.there == 0 {
		return fmt.Errorf("cgroup %s: %w", cgroup, errdefs.ErrNotFound)
	}
	return nil
}

func (f *FS) readStats(r *reader, s *pod.Stats) {
	r.keep = true
	s.At = time.Now()
	if f.mode == V2 {
		r.readV2(f.unified, s)
	} else {
		r.readV1(f.v1, s)
	}
	r.keep = false
}

// v1 is the directory of a controller's hierarchy, "" without one.
func (f *FS) v1(controller string) string { return f.controllers[controller] }

func (r *reader) readV2(unified string, s *pod.Stats) {
	r.keyed(unified, "cpu.stat", func(key []byte, value uint64) {
		if string(key) == "usage_usec" {
			s.CPUUsage = micros(value)
		}
	})
	var inactive uint64
	r.keyed(unified, "memory.stat", func(key []byte, value uint64) {
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
	s.MemoryUsage = r.number(unified, "memory.current")
	s.MemoryWorkingSet = less(s.MemoryUsage, inactive)
	s.MemoryLimit = r.number(unified, "memory.max")
	s.SwapUsage = r.number(unified, "memory.swap.current")
	if limit, ok := r.limit(unified, "memory.swap.max"); ok {
		s.SwapLimit = &limit
	}
	s.Processes = r.number(unified, "pids.current")
	s.CPUStall = r.stall(unified, "cpu.pressure")
	s.MemoryStall = r.stall(unified, "memory.pressure")
	s.IOStall = r.stall(unified, "io.pressure")
}

func (r *reader) readV1(hierarchy func(controller string) string, s *pod.Stats) {
	memory := hierarchy("memory")
	s.CPUUsage = time.Duration(r.number(hierarchy("cpuacct"), "cpuacct.usage"))
	var inactive uint64
	r.keyed(memory, "memory.stat", func(key []byte, value uint64) {
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
	s.MemoryUsage = r.number(memory, "memory.usage_in_bytes")
	s.MemoryWorkingSet = less(s.MemoryUsage, inactive)
	if limit := r.number(memory, "memory.limit_in_bytes"); limit < unlimited {
		s.MemoryLimit = limit
	}
	// This one bounds memory and swap together.
	if both, ok := r.limit(memory, "memory.memsw.limit_in_bytes"); ok && both < unlimited {
		swap := less(both, s.MemoryLimit)
		s.SwapLimit = &swap
	}
	s.Processes = r.number(hierarchy("pids"), "pids.current")
}

func less(usage, inactive uint64) uint64 {
	if inactive > usage {
		return 0
	}
	return usage - inactive
}

func micros(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }
