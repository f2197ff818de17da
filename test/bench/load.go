package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// load tells the CPU time of the whole machine from that of the measurement.
type load struct {
	servers []*server
	began   time.Time
	machine time.Duration
	own     time.Duration
}

func watchLoad(servers []*server) (*load, error) {
	l := &load{servers: servers, began: time.Now()}
	var err error
	l.machine, l.own, err = l.read()
	return l, err
}

// end returns how many CPUs others have kept busy meanwhile.
func (l *load) end() (float64, error) {
	machine, own, err := l.read()
	if err != nil {
		return 0, err
	}
	foreign := (machine - l.machine) - (own - l.own)
	return max(0, foreign.Seconds()/time.Since(l.began).Seconds()), nil
}

func (l *load) read() (machine, own time.Duration, err error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, err
	}
	const userHz = 100 // the unit of times in /proc, the same on every architecture
	line, _, _ := strings.Cut(string(data), "\n")
	for i, f := range strings.Fields(line)[1:] {
		if i == 3 || i == 4 || i >= 8 { // idle, iowait; guests' time is in user's
			continue
		}
		n, bad := strconv.ParseInt(f, 10, 64)
		if bad != nil {
			return 0, 0, fmt.Errorf("/proc/stat: %w", bad)
		}
		machine += time.Duration(n) * time.Second / userHz
	}
	own = ownCPU() // the registry's too
	for _, s := range l.servers {
		used, failed := s.cpu()
		if failed != nil {
			return 0, 0, failed
		}
		own += used
	}
	return machine, own, nil
}

// ownCPU is the CPU time of this process.
func ownCPU() time.Duration { return usage(syscall.RUSAGE_SELF) }

// childrenCPU is that of the children that were waited for, and theirs.
func childrenCPU() time.Duration { return usage(syscall.RUSAGE_CHILDREN) }

func usage(who int) time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(who, &u) // fails for no process that asks about itself
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
