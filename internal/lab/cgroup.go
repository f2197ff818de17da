package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func sanitize(name string) string {
	return "-" + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, name)
}

// endTime is how long what was killed may take to leave its cgroup.
const endTime = time.Minute

// removeCgroup removes path in every hierarchy. What a process is in can't be removed, and one that was
// killed leaves it late, when it is reaped. It returns what stays for so long.
func removeCgroup(path string, most time.Duration) []string {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(most); ; <-tick.C {
		left := tryRemoveCgroup(path)
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

func tryRemoveCgroup(path string) (left []string) {
	hierarchies, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	for _, h := range append(hierarchies, "/sys/fs/cgroup/cgroup.procs") {
		var dirs []string
		_ = filepath.WalkDir(filepath.Join(filepath.Dir(h), path), func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) {
			if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
				procs, _ := os.ReadFile(filepath.Join(d, "cgroup.procs"))
				left = append(left, fmt.Sprintf("%v, pids %v", err, strings.Fields(string(procs))))
			}
		}
	}
	// crun makes plain directories where v2 could be mounted beside v1, on a file system that the lab
	// shares with the machine.
	if _, err := os.Stat("/sys/fs/cgroup/unified/cgroup.procs"); err != nil {
		_ = os.RemoveAll(filepath.Join("/sys/fs/cgroup/unified", path))
	}
	return left
}
