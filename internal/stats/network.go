package stats

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
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
		u, err = readInterfaces("/proc/thread-self/net/dev")
		return err
	})
	return u, err
}

// throughProcess reads the counters of the namespace that pid is in, nil unless that is pin. It looks
// at the namespace before and after: the pid may have become another process's.
func throughProcess(pid int, pin *unix.Stat_t) *pod.NetworkUsage {
	dir := "/proc/" + strconv.Itoa(pid)
	inside := func() bool {
		var ns unix.Stat_t
		return unix.Stat(dir+"/ns/net", &ns) == nil && ns.Dev == pin.Dev && ns.Ino == pin.Ino
	}
	if pid <= 0 || !inside() {
		return nil
	}
	u, err := readInterfaces(dir + "/net/dev")
	if err != nil || !inside() {
		return nil
	}
	return u
}

func readInterfaces(path string) (*pod.NetworkUsage, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("interfaces of a pod: %w", err)
	}
	defer func() { _ = f.Close() }()
	u := &pod.NetworkUsage{At: time.Now()}
	if u.Interfaces, err = parseInterfaces(f); err != nil {
		return nil, fmt.Errorf("interfaces of a pod: %w", err)
	}
	return u, nil
}

// parseInterfaces reads /proc/net/dev (proc_pid_net(5)): two lines of head, then a line an interface
// with eight numbers received and eight sent.
func parseInterfaces(r io.Reader) ([]pod.InterfaceUsage, error) {
	var all []pod.InterfaceUsage
	sc := bufio.NewScanner(r)
	for sc.Scan() && len(all) < maxInterfaces {
		name, numbers, ok := bytes.Cut(sc.Bytes(), []byte{':'})
		if !ok {
			continue
		}
		var n [16]uint64
		for i, field := range bytes.Fields(numbers) {
			v, err := strconv.ParseUint(string(field), 10, 64)
			if err != nil || i == len(n) {
				break
			}
			n[i] = v
		}
		i := pod.InterfaceUsage{
			Name:    string(bytes.TrimSpace(name)),
			RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11],
		}
		if i.Name != "lo" {
			all = append(all, i)
		}
	}
	return all, sc.Err()
}
