package pod

import "time"

// Stats is what a container or a pod uses, with the time when it was read. What the kernel does not
// account is zero, or nil where zero would mean something else.
type Stats struct {
	At       time.Time
	CPUUsage time.Duration
	// CPURate is the use of CPU between the last two readings, in nanoseconds a second; nil before
	// the second.
	CPURate *uint64

	MemoryUsage      uint64 // bytes
	MemoryWorkingSet uint64 // usage less inactive file pages, as the kubelet defines it
	MemoryRSS        uint64
	MemoryLimit      uint64 // 0: none
	PageFaults       uint64
	MajorPageFaults  uint64
	SwapUsage        uint64
	SwapLimit        *uint64 // of swap alone; nil: none
	Processes        uint64  // tasks, which is what pids limits count

	CPUStall    *Stall // nil where the kernel accounts no pressure
	MemoryStall *Stall
	IOStall     *Stall

	Layer   *Usage        // the writable layer, measured at its own time; nil while nobody knows
	Network *NetworkUsage // of a pod with a network namespace of its own
}

// Stall is what tasks lost waiting for a resource: some of them, or all that were not idle
// (Documentation/accounting/psi.rst).
type Stall struct {
	Some StallTime
	Full StallTime
}

// StallTime is a total and its share of the last 10, 60 and 300 seconds, in percent.
type StallTime struct {
	Total  time.Duration
	Avg10  float64
	Avg60  float64
	Avg300 float64
}

// NetworkUsage is what went through the interfaces of a network namespace.
type NetworkUsage struct {
	At         time.Time
	Interfaces []InterfaceUsage // without the loopback
}

// InterfaceUsage counts since the interface was made.
type InterfaceUsage struct {
	Name      string
	RxBytes   uint64
	RxPackets uint64
	RxErrors  uint64
	RxDropped uint64
	TxBytes   uint64
	TxPackets uint64
	TxErrors  uint64
	TxDropped uint64
}

// Metrics is all that can be read about a container or a pod. It costs more than Stats.
type Metrics struct {
	Stats
	CPUUser   time.Duration
	CPUSystem time.Duration
	Throttle  Throttle

	MemoryCache    uint64 // bytes
	MemoryKernel   uint64
	MemoryMapped   uint64
	MemoryPeak     uint64
	MemoryFailures uint64 // times that the limit was hit
	ActiveFile     uint64
	InactiveFile   uint64
	OOMKills       uint64

	HugePages []HugePageUsage
	Devices   []DeviceUsage

	Tasks      *Tasks // nil where there is no process to look at
	Filesystem *Filesystem
}

// Throttle is how often a CPU quota held the tasks up.
type Throttle struct {
	Periods   uint64
	Throttled uint64
	Time      time.Duration
}

// HugePageUsage is what is used of one page size, written as in "2MB".
type HugePageUsage struct {
	Size  string
	Usage uint64 // bytes
	Peak  uint64 // bytes; 0 where the kernel does not keep it
}

// DeviceUsage is what was read from and written to a block device.
type DeviceUsage struct {
	Major, Minor uint64
	ReadBytes    uint64
	WriteBytes   uint64
	Reads        uint64
	Writes       uint64
}

// Tasks tells about the processes of a container.
type Tasks struct {
	Processes    uint64
	Threads      uint64
	ThreadsMax   uint64 // 0: no limit
	Descriptors  uint64 // open
	Sockets      uint64 // of the descriptors
	OpenFilesMax uint64 // soft limit of the main process; 0: none
	States       TaskStates
}

// TaskStates counts main threads by what they do.
type TaskStates struct {
	Running         uint64
	Sleeping        uint64
	Stopped         uint64
	Uninterruptible uint64
}

// Filesystem is the file system that a writable layer is on.
type Filesystem struct {
	Bytes      uint64
	Inodes     uint64
	InodesFree uint64
}

// Count adds a task in the state that the letter of proc_pid_stat(5) says; another letter adds none.
func (s *TaskStates) Count(letter byte) {
	switch letter {
	case 'R':
		s.Running++
	case 'S', 'I':
		s.Sleeping++
	case 'T', 't':
		s.Stopped++
	case 'D':
		s.Uninterruptible++
	}
}
