package cri

import (
	"strconv"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

func seconds64(d time.Duration) uint64 { return uint64(max(0, d) / time.Second) }

func cpuMetrics() []metric {
	return []metric{
		{"container_cpu_user_seconds_total", "Cumulative user CPU time consumed in seconds.", counter, nil,
			always(func(m *measured) uint64 { return seconds64(m.CPUUser) })},
		{"container_cpu_system_seconds_total", "Cumulative system CPU time consumed in seconds.", counter, nil,
			always(func(m *measured) uint64 { return seconds64(m.CPUSystem) })},
		{"container_cpu_usage_seconds_total", "Cumulative CPU time consumed in seconds.", counter, []string{"cpu"},
			func(m *measured) []sample { return []sample{{value: seconds64(m.CPUUsage), labels: []string{"total"}}} }},
		{"container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", counter, nil,
			always(func(m *measured) uint64 { return m.Throttle.Periods })},
		{"container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", counter, nil,
			always(func(m *measured) uint64 { return m.Throttle.Throttled })},
		{"container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", counter, nil,
			always(func(m *measured) uint64 { return seconds64(m.Throttle.Time) })},
	}
}

func memoryMetrics() []metric {
	of := func(name, help string, kind runtime.MetricType, value func(*measured) uint64) metric {
		return metric{name, help, kind, nil, always(value)}
	}
	pages := func(m *measured) []pod.HugePageUsage { return m.HugePages }
	return []metric{
		of("container_memory_cache", "Number of bytes of page cache memory.", gauge, func(m *measured) uint64 { return m.MemoryCache }),
		of("container_memory_rss", "Size of RSS in bytes.", gauge, func(m *measured) uint64 { return m.MemoryRSS }),
		of("container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", gauge, func(m *measured) uint64 { return m.MemoryKernel }),
		of("container_memory_mapped_file", "Size of memory mapped files in bytes.", gauge, func(m *measured) uint64 { return m.MemoryMapped }),
		of("container_memory_swap", "Container swap usage in bytes.", gauge, func(m *measured) uint64 { return m.SwapUsage }),
		of("container_memory_failcnt", "Number of memory usage hits limits.", counter, func(m *measured) uint64 { return m.MemoryFailures }),
		of("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed.", gauge,
			func(m *measured) uint64 { return m.MemoryUsage }),
		of("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes.", gauge, func(m *measured) uint64 { return m.MemoryPeak }),
		of("container_memory_working_set_bytes", "Current working set in bytes.", gauge, func(m *measured) uint64 { return m.MemoryWorkingSet }),
		of("container_memory_total_active_file_bytes", "Current total active file in bytes.", gauge, func(m *measured) uint64 { return m.ActiveFile }),
		of("container_memory_total_inactive_file_bytes", "Current total inactive file in bytes.", gauge, func(m *measured) uint64 { return m.InactiveFile }),
		{"container_memory_failures_total", "Cumulative count of memory allocation failures.", counter, []string{"failure_type", "scope"},
			func(m *measured) []sample {
				return []sample{
					{value: m.PageFaults, labels: []string{"pgfault", "container"}},
					{value: m.PageFaults, labels: []string{"pgfault", "hierarchy"}},
					{value: m.MajorPageFaults, labels: []string{"pgmajfault", "container"}},
					{value: m.MajorPageFaults, labels: []string{"pgmajfault", "hierarchy"}},
				}
			}},
		of("container_oom_events_total", "Count of out of memory events observed for the container.", counter, func(m *measured) uint64 { return m.OOMKills }),
		{"container_hugetlb_usage_bytes", "Current hugepage usage in bytes.", gauge, []string{"pagesize"},
			ofEach(pages, func(h *pod.HugePageUsage) []sample { return []sample{{value: h.Usage, labels: []string{h.Size}}} })},
		{"container_hugetlb_max_usage_bytes", "Maximum hugepage usage recorded in bytes.", gauge, []string{"pagesize"},
			ofEach(pages, func(h *pod.HugePageUsage) []sample {
				return []sample{{value: max(h.Peak, h.Usage), labels: []string{h.Size}}}
			})},
	}
}

func pressureMetrics() (out []metric) {
	for _, r := range []struct {
		name  string
		stall func(*measured) *pod.Stall
	}{
		{"cpu", func(m *measured) *pod.Stall { return m.CPUStall }},
		{"memory", func(m *measured) *pod.Stall { return m.MemoryStall }},
		{"io", func(m *measured) *pod.Stall { return m.IOStall }},
	} {
		of := func(of func(*pod.Stall) time.Duration) func(*measured) []sample {
			return func(m *measured) []sample {
				if s := r.stall(m); s != nil {
					return []sample{{value: seconds64(of(s))}}
				}
				return nil
			}
		}
		out = append(out,
			metric{"container_pressure_" + r.name + "_stalled_seconds_total", "Total time duration no tasks in the container could make progress for want of " + r.name + ".",
				counter, nil, of(func(s *pod.Stall) time.Duration { return s.Full.Total })},
			metric{"container_pressure_" + r.name + "_waiting_seconds_total", "Total time duration tasks in the container have waited for " + r.name + ".",
				counter, nil, of(func(s *pod.Stall) time.Duration { return s.Some.Total })})
	}
	return out
}

func diskMetrics() []metric {
	devices := func(m *measured) []pod.DeviceUsage { return m.Devices }
	io := func(name, help string, value func(*pod.DeviceUsage) uint64) metric {
		return metric{name, help, counter, []string{"device"}, ofEach(devices, func(d *pod.DeviceUsage) []sample {
			return []sample{{value: value(d), labels: []string{deviceName(d)}}}
		})}
	}
	fs := func(name, help string, value func(*pod.Filesystem) uint64) metric {
		return metric{name, help, gauge, []string{"device"}, func(m *measured) []sample {
			if m.Filesystem == nil || m.Layer == nil {
				return nil
			}
			return []sample{{value: value(m.Filesystem), labels: []string{m.Layer.Mountpoint}}}
		}}
	}
	return []metric{
		{"container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", gauge, []string{"device"},
			func(m *measured) []sample {
				if m.Layer == nil {
					return nil
				}
				return []sample{{value: m.Layer.Bytes, labels: []string{m.Layer.Mountpoint}, at: nanos(m.Layer.At)}}
			}},
		fs("container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", func(f *pod.Filesystem) uint64 { return f.Bytes }),
		fs("container_fs_inodes_total", "Number of inodes.", func(f *pod.Filesystem) uint64 { return f.Inodes }),
		fs("container_fs_inodes_free", "Number of available inodes.", func(f *pod.Filesystem) uint64 { return f.InodesFree }),
		io("container_fs_reads_bytes_total", "Cumulative count of bytes read.", func(d *pod.DeviceUsage) uint64 { return d.ReadBytes }),
		io("container_fs_reads_total", "Cumulative count of reads completed.", func(d *pod.DeviceUsage) uint64 { return d.Reads }),
		io("container_fs_writes_bytes_total", "Cumulative count of bytes written.", func(d *pod.DeviceUsage) uint64 { return d.WriteBytes }),
		io("container_fs_writes_total", "Cumulative count of writes completed.", func(d *pod.DeviceUsage) uint64 { return d.Writes }),
		{"container_blkio_device_usage_total", "Blkio device bytes usage.", counter, []string{"device", "major", "minor", "operation"},
			ofEach(devices, func(d *pod.DeviceUsage) []sample {
				of := func(operation string) []string {
					return []string{deviceName(d), strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10), operation}
				}
				return []sample{{value: d.ReadBytes, labels: of("read")}, {value: d.WriteBytes, labels: of("write")}}
			})},
	}
}

// deviceName is "8:0": what it is called in /dev is udev's to say.
func deviceName(d *pod.DeviceUsage) string {
	return strconv.FormatUint(d.Major, 10) + ":" + strconv.FormatUint(d.Minor, 10)
}

func networkMetrics() []metric {
	interfaces := func(m *measured) []pod.InterfaceUsage {
		if m.Network == nil {
			return nil
		}
		return m.Network.Interfaces
	}
	of := func(name, help string, value func(*pod.InterfaceUsage) uint64) metric {
		return metric{"container_network_" + name, help, counter, []string{"interface"}, ofEach(interfaces, func(i *pod.InterfaceUsage) []sample {
			return []sample{{value: value(i), labels: []string{i.Name}}}
		})}
	}
	return []metric{
		of("receive_bytes_total", "Cumulative count of bytes received.", func(i *pod.InterfaceUsage) uint64 { return i.RxBytes }),
		of("receive_packets_total", "Cumulative count of packets received.", func(i *pod.InterfaceUsage) uint64 { return i.RxPackets }),
		of("receive_packets_dropped_total", "Cumulative count of packets dropped while receiving.", func(i *pod.InterfaceUsage) uint64 { return i.RxDropped }),
		of("receive_errors_total", "Cumulative count of errors encountered while receiving.", func(i *pod.InterfaceUsage) uint64 { return i.RxErrors }),
		of("transmit_bytes_total", "Cumulative count of bytes transmitted.", func(i *pod.InterfaceUsage) uint64 { return i.TxBytes }),
		of("transmit_packets_total", "Cumulative count of packets transmitted.", func(i *pod.InterfaceUsage) uint64 { return i.TxPackets }),
		of("transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting.", func(i *pod.InterfaceUsage) uint64 { return i.TxDropped }),
		of("transmit_errors_total", "Cumulative count of errors encountered while transmitting.", func(i *pod.InterfaceUsage) uint64 { return i.TxErrors }),
	}
}

func taskMetrics() []metric {
	of := func(name, help string, value func(*pod.Tasks) uint64) metric {
		return metric{"container_" + name, help, gauge, nil, func(m *measured) []sample {
			if m.Tasks == nil {
				return nil
			}
			return []sample{{value: value(m.Tasks)}}
		}}
	}
	return []metric{
		of("processes", "Number of processes running inside the container.", func(t *pod.Tasks) uint64 { return t.Processes }),
		of("threads", "Number of threads running inside the container.", func(t *pod.Tasks) uint64 { return t.Threads }),
		of("threads_max", "Maximum number of threads allowed inside the container, infinity if value is zero.", func(t *pod.Tasks) uint64 { return t.ThreadsMax }),
		of("file_descriptors", "Number of open file descriptors for the container.", func(t *pod.Tasks) uint64 { return t.Descriptors }),
		of("sockets", "Number of open sockets for the container.", func(t *pod.Tasks) uint64 { return t.Sockets }),
		{"container_ulimits_soft", "Soft ulimit values for the container root process. Unlimited if 0.", gauge, []string{"ulimit"},
			func(m *measured) []sample {
				if m.Tasks == nil {
					return nil
				}
				return []sample{{value: m.Tasks.OpenFilesMax, labels: []string{"max_open_files"}}}
			}},
		{"container_tasks_state", "Number of tasks in given state.", gauge, []string{"state"},
			func(m *measured) []sample {
				if m.Tasks == nil {
					return nil
				}
				s := m.Tasks.States
				return []sample{
					{value: s.Running, labels: []string{"running"}}, {value: s.Sleeping, labels: []string{"sleeping"}},
					{value: s.Stopped, labels: []string{"stopped"}}, {value: s.Uninterruptible, labels: []string{"uninterruptible"}},
				}
			}},
	}
}

func specMetrics() []metric {
	unsigned := func(n int64) uint64 { return uint64(max(0, n)) }
	of := func(name, help string, value func(*measured) uint64) metric {
		return metric{"container_" + name, help, gauge, nil, ofContainer(value)}
	}
	return []metric{
		of("spec_cpu_period", "CPU period of the container.", func(m *measured) uint64 { return unsigned(m.container.Spec.Resources.CPUPeriod) }),
		of("spec_cpu_quota", "CPU quota of the container.", func(m *measured) uint64 { return unsigned(m.container.Spec.Resources.CPUQuota) }),
		of("spec_cpu_shares", "CPU share of the container.", func(m *measured) uint64 { return unsigned(m.container.Spec.Resources.CPUShares) }),
		of("spec_memory_limit_bytes", "Memory limit for the container.", func(m *measured) uint64 { return unsigned(m.container.Spec.Resources.MemoryLimit) }),
		of("spec_memory_swap_limit_bytes", "Memory swap limit for the container.", func(m *measured) uint64 { return unsigned(m.container.Spec.Resources.MemorySwapLimit) }),
		of("start_time_seconds", "Start time of the container since unix epoch in seconds.", func(m *measured) uint64 { return unsigned(m.container.StartedAt.Unix()) }),
		{"container_last_seen", "Last time a container was seen by the exporter.", gauge, nil, always(func(m *measured) uint64 { return unsigned(m.At.Unix()) })},
	}
}
