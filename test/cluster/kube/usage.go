package kube

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gantry/test/node"
)

// userHZ is the unit of CPU times in /proc, the same on every architecture that Go knows (proc_pid_stat(5)).
const userHZ = 100

// CPU is the time that the node's processes of these names and the dead children that they waited for have used.
func (n *Node) CPU(names ...string) time.Duration {
	var ticks int64
	for _, p := range n.named(names) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid))
		if err != nil {
			continue // it has ended, and its parent has its time
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, field := range fields[11:15] { // utime, stime, cutime, cstime
			spent, _ := strconv.ParseInt(field, 10, 64)
			ticks += spent
		}
	}
	return time.Duration(ticks) * time.Second / userHZ
}

// Memory is what the node's processes of these names need: their proportional set size, in bytes.
func (n *Node) Memory(names ...string) int64 {
	var kib int64
	for _, p := range n.named(names) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.Pid))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(data)) {
			if fields := strings.Fields(line); fields[0] == "Pss:" {
				size, _ := strconv.ParseInt(fields[1], 10, 64)
				kib += size
			}
		}
	}
	return kib << 10
}

func (n *Node) named(names []string) []node.Process {
	return slices.DeleteFunc(n.Processes(), func(p node.Process) bool { return !slices.Contains(names, filepath.Base(p.Command[0])) })
}
