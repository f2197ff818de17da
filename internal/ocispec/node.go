package ocispec

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// NodeFacts finds out what the machine allows this process to give to containers. What depends on
// the cgroups and on the OCI runtime is the caller's to fill in.
func NodeFacts() (Node, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return Node{}, fmt.Errorf("capabilities of this process: %w", err)
	}
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return Node{}, fmt.Errorf("oom_score_adj of this process: %w", err)
	}
	n := Node{Bounding: bounding(status)}
	if n.OOMScoreAdj, err = strconv.Atoi(string(bytes.TrimSpace(score))); err != nil {
		return Node{}, fmt.Errorf("oom_score_adj of this process: %w", err)
	}
	if n.Hostname, err = os.Hostname(); err != nil {
		return Node{}, fmt.Errorf("hostname: %w", err)
	}
	enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	n.AppArmor = err == nil && bytes.HasPrefix(enabled, []byte("Y"))
	return n, nil
}

// bounding reads the bounding set from the content of /proc/PID/status (proc_pid_status(5)).
func bounding(status []byte) []string {
	for line := range bytes.Lines(status) {
		value, ok := bytes.CutPrefix(line, []byte("CapBnd:"))
		if !ok {
			continue
		}
		mask, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		if err != nil {
			return nil
		}
		var names []string
		for bit, name := range allCapabilities {
			if mask&(1<<bit) != 0 {
				names = append(names, name)
			}
		}
		return names
	}
	return nil
}
