package cgroup

import (
	"bytes"
	"cmp"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gantry/internal/pod"
)

// userHz is in what cpuacct.stat counts: USER_HZ is 100 on every architecture that Go knows.
const userHz = 100

// ReadMetrics reads everything that the kernel accounts for a cgroup and what is below it. An absent
// cgroup is errdefs.ErrNotFound.
func (f *FS) ReadMetrics(cgroup string) (*pod.Metrics, error) {
	var m pod.Metrics
	err := f.with(cgroup, func(r *reader) {
		m = pod.Metrics{}
		f.readStats(r, &m.Stats)
		if f.mode == V2 {
			r.moreV2(f.unified, &m)
			return
		}
		r.moreV1(f.v1, &m)
		if f.unified != "" { // hybrid nodes have hugetlb here
			r.hugePages(f.unified, "current", "", &m)
		}
	})
	if err != nil {
		return nil, err
	}
	return &m, nil
}

// MaxTasks is the pids limit of a cgroup, 0 when it has none.
func (f *FS) MaxTasks(cgroup string) (limit uint64) {
	hierarchy := f.v1("pids")
	if f.mode == V2 {
		hierarchy = f.unified
	}
	_ = f.with(cgroup, func(r *reader) { limit = r.number(hierarchy, "pids.max") })
	return limit
}

func (r *reader) moreV2(unified string, m *pod.Metrics) {
	r.keyed(unified, "cpu.stat", func(key []byte, value uint64) {
		switch string(key) {
		case "user_usec":
			m.CPUUser = micros(value)
		case "system_usec":
			m.CPUSystem = micros(value)
		case "nr_periods":
			m.Throttle.Periods = value
		case "nr_throttled":
			m.Throttle.Throttled = value
		case "throttled_usec":
			m.Throttle.Time = micros(value)
		}
	})
	r.keyed(unified, "memory.stat", func(key []byte, value uint64) {
		switch string(key) {
		case "file":
			m.MemoryCache = value
		case "kernel":
			m.MemoryKernel = value
		case "file_mapped":
			m.MemoryMapped = value
		case "active_file":
			m.ActiveFile = value
		case "inactive_file":
			m.InactiveFile = value
		}
	})
	m.MemoryPeak = r.number(unified, "memory.peak")
	r.keyed(unified, "memory.events", func(key []byte, value uint64) {
		switch string(key) {
		case "max":
			m.MemoryFailures = value
		case "oom_kill":
			m.OOMKills = value
		}
	})
	r.hugePages(unified, "current", "", m)
	for line := range bytes.Lines(r.read(unified, "io.stat")) {
		name, values, _ := strings.Cut(string(line), " ")
		d := device(m, name)
		if d == nil {
			continue
		}
		for field := range strings.FieldsSeq(values) {
			key, value, _ := strings.Cut(field, "=")
			n, _ := parse([]byte(value))
			switch key {
			case "rbytes":
				d.ReadBytes = n
			case "wbytes":
				d.WriteBytes = n
			case "rios":
				d.Reads = n
			case "wios":
				d.Writes = n
			}
		}
	}
}

func (r *reader) moreV1(hierarchy func(controller string) string, m *pod.Metrics) {
	r.keyed(hierarchy("cpuacct"), "cpuacct.stat", func(key []byte, value uint64) {
		switch string(key) {
		case "user":
			m.CPUUser = time.Duration(value) * time.Second / userHz
		case "system":
			m.CPUSystem = time.Duration(value) * time.Second / userHz
		}
	})
	r.keyed(hierarchy("cpu"), "cpu.stat", func(key []byte, value uint64) {
		switch string(key) {
		case "nr_periods":
			m.Throttle.Periods = value
		case "nr_throttled":
			m.Throttle.Throttled = value
		case "throttled_time":
			m.Throttle.Time = time.Duration(value)
		}
	})
	memory := hierarchy("memory")
	r.keyed(memory, "memory.stat", func(key []byte, value uint64) {
		switch string(key) {
		case "total_cache":
			m.MemoryCache = value
		case "total_mapped_file":
			m.MemoryMapped = value
		case "total_active_file":
			m.ActiveFile = value
		case "total_inactive_file":
			m.InactiveFile = value
		}
	})
	m.MemoryKernel = r.number(memory, "memory.kmem.usage_in_bytes")
	m.MemoryPeak = r.number(memory, "memory.max_usage_in_bytes")
	m.MemoryFailures = r.number(memory, "memory.failcnt")
	r.keyed(memory, "memory.oom_control", func(key []byte, value uint64) {
		if string(key) == "oom_kill" {
			m.OOMKills = value
		}
	})
	r.hugePages(hierarchy("hugetlb"), "usage_in_bytes", "max_usage_in_bytes", m)
	r.blkio(hierarchy("blkio"), "io_service_bytes", func(d *pod.DeviceUsage) (read, write *uint64) { return &d.ReadBytes, &d.WriteBytes }, m)
	r.blkio(hierarchy("blkio"), "io_serviced", func(d *pod.DeviceUsage) (read, write *uint64) { return &d.Reads, &d.Writes }, m)
}

// blkio reads lines such as "8:0 Read 4096" into what fields returns.
func (r *reader) blkio(hierarchy, what string, fields func(*pod.DeviceUsage) (read, write *uint64), m *pod.Metrics) {
	for line := range bytes.Lines(r.read(hierarchy, "blkio.throttle."+what+"_recursive")) {
		words := strings.Fields(string(line))
		if len(words) != 3 {
			continue
		}
		d := device(m, words[0])
		if d == nil {
			continue
		}
		read, write := fields(d)
		n, _ := parse([]byte(words[2]))
		switch words[1] {
		case "Read":
			*read = n
		case "Write":
			*write = n
		}
	}
}

// device finds or adds the device named as in "8:0"; nil when the name is none.
func device(m *pod.Metrics, name string) *pod.DeviceUsage {
	first, second, _ := strings.Cut(strings.TrimSpace(name), ":")
	major, err := strconv.ParseUint(first, 10, 32)
	if err != nil {
		return nil
	}
	minor, err := strconv.ParseUint(second, 10, 32)
	if err != nil {
		return nil
	}
	i := slices.IndexFunc(m.Devices, func(d pod.DeviceUsage) bool { return d.Major == major && d.Minor == minor })
	if i < 0 {
		m.Devices = append(m.Devices, pod.DeviceUsage{Major: major, Minor: minor})
		i = len(m.Devices) - 1
	}
	return &m.Devices[i]
}

// hugePages reads the files hugetlb.<size>.<usage> and, unless peak is "", hugetlb.<size>.<peak>.
func (r *reader) hugePages(hierarchy, usage, peak string, m *pod.Metrics) {
	if hierarchy == "" {
		return
	}
	names, _ := filepath.Glob(filepath.Join(hierarchy, r.cgroup, "hugetlb.*."+usage))
	for _, name := range names {
		size := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), "hugetlb."), "."+usage)
		if strings.Contains(size, ".") { // hugetlb.2MB.rsvd.current counts reservations
			continue
		}
		h := pod.HugePageUsage{Size: size, Usage: r.number(hierarchy, filepath.Base(name))}
		if peak != "" {
			h.Peak = r.number(hierarchy, "hugetlb."+size+"."+peak)
		}
		m.HugePages = append(m.HugePages, h)
	}
	slices.SortFunc(m.HugePages, func(a, b pod.HugePageUsage) int { return cmp.Compare(a.Size, b.Size) })
}
