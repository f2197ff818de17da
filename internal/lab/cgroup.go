package lab

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func sanitize(name string) string {
	return "-" + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, name)
}

func removeCgroup(path string) {
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
			_ = os.Remove(d)
		}
	}
	// crun makes plain directories where v2 could be mounted beside v1, on a file system that the lab
	// shares with the machine.
	if _, err := os.Stat("/sys/fs/cgroup/unified/cgroup.procs"); err != nil {
		_ = os.RemoveAll(filepath.Join("/sys/fs/cgroup/unified", path))
	}
}
