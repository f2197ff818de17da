package stats

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// What is looked at is bounded: a container with more counts as one with so many.
const (
	maxProcesses   = 1024
	maxDescriptors = 1 << 16
)

// tasks looks at the processes of a container, whose first one is main. What ends meanwhile does
// not count.
func tasks(pids []int, main int) *pod.Tasks {
	t := &pod.Tasks{Processes: uint64(len(pids))}
	for _, pid := range pids[:min(len(pids), maxProcesses)] {
		dir := "/proc/" + strconv.Itoa(pid)
		t.States.Count(state(dir))
		if t.Descriptors < maxDescriptors {
			countDescriptors(dir+"/fd", t)
		}
	}
	if main > 0 {
		t.OpenFilesMax = openFilesMax("/proc/" + strconv.Itoa(main) + "/limits")
	}
	return t
}

// state is the letter behind the command's closing parenthesis in /proc/PID/stat (proc_pid_stat(5)).
func state(dir string) byte {
	data, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0
	}
	_, after, _ := bytes.Cut(data[max(0, bytes.LastIndexByte(data, ')')):], []byte{' '})
	if len(after) == 0 {
		return 0
	}
	return after[0]
}

func countDescriptors(dir string, t *pod.Tasks) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	names, _ := f.Readdirnames(maxDescriptors)
	t.Descriptors += uint64(len(names))
	for _, name := range names {
		if to, err := os.Readlink(filepath.Join(dir, name)); err == nil && strings.HasPrefix(to, "socket:") {
			t.Sockets++
		}
	}
}

// openFilesMax is the soft limit in a line such as "Max open files   1024   4096   files".
func openFilesMax(path string) uint64 {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if values, ok := strings.CutPrefix(line, "Max open files"); ok {
			soft, _, _ := strings.Cut(strings.TrimSpace(values), " ")
			n, _ := strconv.ParseUint(soft, 10, 64)
			return n
		}
	}
	return 0
}

// filesystem is nil when it does not answer.
func filesystem(path string) *pod.Filesystem {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return nil
	}
	return &pod.Filesystem{Bytes: st.Blocks * uint64(st.Bsize), Inodes: st.Files, InodesFree: st.Ffree}
}
