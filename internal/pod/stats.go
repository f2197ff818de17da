package pod

import "time"

// Stats is a reading of one cgroup, with the time it was taken.
type Stats struct {
	At               time.Time
	CPUUsage         time.Duration
	MemoryUsage      uint64 // bytes
	MemoryWorkingSet uint64 // usage less inactive file pages, as the kubelet defines it
	MemoryRSS        uint64
	MemoryLimit      uint64 // 0: none
	PageFaults       uint64
	MajorPageFaults  uint64
	SwapUsage        uint64
	Processes        uint64
}
