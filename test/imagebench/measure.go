package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sample is what one pull took.
type sample struct {
	seconds float64
	cpu     float64 // seconds of the server and the children it waited for
	memory  float64 // MiB, the highest resident set over that of the idle server
}

// measure pulls ref, which the server does not have, and removes it again.
func (s *server) measure(ctx context.Context, ref string) (sample, error) {
	spec := &cri.ImageSpec{Image: ref}
	unix.Sync() // what others wrote is not this pull's to write
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.pid), []byte("5"), 0); err != nil {
		return sample{}, fmt.Errorf("reset the highest resident set: %w", err)
	}
	cpu := s.cpu()
	began := time.Now()
	if _, err := s.images.PullImage(ctx, &cri.PullImageRequest{Image: spec}); err != nil {
		return sample{}, err
	}
	got := sample{seconds: time.Since(began).Seconds(), cpu: s.cpu() - cpu, memory: float64(s.status("VmHWM")-s.idle) / 1024}
	if _, err := s.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec}); err != nil {
		return sample{}, err
	}
	return got, nil
}

// ticks is the unit of times in /proc (USER_HZ, the same on every architecture).
const ticks = 100

// cpu is the server's CPU time in seconds.
func (s *server) cpu() float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	total := 0.0
	for _, f := range fields[11:15] { // utime, stime, cutime, cstime: proc_pid_stat(5)
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0
		}
		total += n
	}
	return total / ticks
}

// status is a line of the server's /proc/PID/status in KiB.
func (s *server) status(key string) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok && name == key {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// machineBusy is the CPU time that the whole machine has spent, in seconds.
func machineBusy() float64 {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(data), "\n")
	total := 0.0
	for i, f := range strings.Fields(line)[1:] {
		if n, err := strconv.ParseFloat(f, 64); err == nil && i != 3 && i != 4 && i < 8 { // not idle, not iowait
			total += n
		}
	}
	return total / ticks
}

func cpus() int { return runtime.NumCPU() }
