package stats

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/netns"
	"gantry/internal/pod"
)

// maxInterfaces bounds what one pod may make the server read and answer.
const maxInterfaces = 256

// Network reads the interfaces of the network namespace pinned at path. Pids are processes that may
// be in it: through one that is, the counters are read without entering the namespace. A namespace
// that is gone is errdefs.ErrNotFound.
func (r *Reader) Network(path string, pids []int) (*pod.NetworkUsage, error) {
	var pin unix.Stat_t
	if err := unix.Stat(path, &pin); err != nil {
		if errors.Is(err, unix.ENOENT) {
			err = errdefs.ErrNotFound
		}
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	for _, pid := range pids {
		if u := throughProcess(pid, &pin); u != nil {
			return u, nil
		}
	}
	var u *pod.NetworkUsage
	err := netns.Do(path, func() (err error) {
		u, err = readInterfaces(unix.AT_FDCWD, "/proc/thread-self/net/dev")
		return err
	})
	return u, err
}

// throughProcess reads the counters of the namespace that pid is in, nil unless that is pin. One
// directory is the same process's all along, whatever the number stands for afterwards. The namespace is
// looked at before and after: the process may move.
func throughProcess(pid int, pin *unix.Stat_t) *pod.NetworkUsage {
	if pid <= 0 {
		return nil
	}
	process, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer func() { _ = unix.Close(process) }()
	inside := func() bool {
		var ns unix.Stat_t
		return unix.Fstatat(process, "ns/net", &ns, 0) == nil && ns.Dev == pin.Dev && ns.Ino == pin.Ino
	}
	if !inside() {
		return nil
	}
	u, err := readInterfaces(process, "net/dev")
	if err != nil || !inside() {
		return nil
	}
	return u
}

// texts are buffers for /proc/net/dev: a line of 120 bytes an interface.
var texts = sync.Pool{New: func() any { return new([maxInterfaces * 160]byte) }}

func readInterfaces(dir int, path string) (*pod.NetworkUsage, error) {
	fd, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("interfaces of a pod: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	text := texts.Get().(*[maxInterfaces * 160]byte)
	defer texts.Put(text)
	u := &pod.NetworkUsage{At: time.Now()}
	n := 0
	for n < len(text) {
		more, err := unix.Read(fd, text[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("interfaces of a pod: %w", err)
		}
		if more == 0 {
			break
		}
		n += more
	}
	if n == len(text) { // no half a line
		n = bytes.LastIndexByte(text[:], '\n') + 1
	}
	u.Interfaces = parseInterfaces(text[:n])
	return u, nil
}

// parseInterfaces reads /proc/net/dev (proc_pid_net(5)): two lines of head, then a line an interface
// with eight numbers received and eight sent.
func parseInterfaces(text []byte) []pod.InterfaceUsage {
	var all []pod.InterfaceUsage
	for line := range bytes.Lines(text) {
		if len(all) == maxInterfaces {
			break
		}
		name, numbers, ok := bytes.Cut(line, []byte{':'})
		if name = bytes.TrimSpace(name); !ok || string(name) == "lo" {
			continue
		}
		var n [16]uint64
		i := 0
		for field := range bytes.FieldsSeq(numbers) {
			v, err := strconv.ParseUint(string(field), 10, 64)
			if err != nil || i == len(n) {
				break
			}
			n[i] = v
			i++
		}
		all = append(all, pod.InterfaceUsage{
			Name:    string(name),
			RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11],
		})
	}
	return all
}
