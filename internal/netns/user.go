package netns

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// createOwned makes a user namespace and, owned by it, the others. A process with several threads
// cannot make one for itself, so a child does: this program again, traced, which the kernel stops
// before its first instruction. It runs on the tracing thread, which is thrown away.
func createOwned(s Spec, flags int) error {
	child, err := startStopped(s, flags)
	if err != nil {
		return err
	}
	defer func() {
		_ = child.Kill()
		_, _ = child.Wait()
	}()
	from := "/proc/" + strconv.Itoa(child.Pid) + "/ns"
	// On another thread: preparing may give up the rights that pinning needs.
	err = onThread(func() error {
		for _, p := range s.pins() {
			if p.flag == unix.CLONE_NEWUSER {
				continue // its maker has every right in it
			}
			if entered := enter(filepath.Join(from, p.name), p.flag); entered != nil {
				return entered
			}
		}
		return prepare(s)
	})
	if err != nil {
		return err
	}
	return pinAll(from, s.pins())
}

func startStopped(s Spec, flags int) (*os.Process, error) {
	uids, err := sysMappings(s.UIDs)
	if err != nil {
		return nil, err
	}
	gids, err := sysMappings(s.GIDs)
	if err != nil {
		return nil, err
	}
	child, err := os.StartProcess("/proc/self/exe", []string{"namespaces"}, &os.ProcAttr{
		Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags: uintptr(flags), UidMappings: uids, GidMappings: gids, GidMappingsEnableSetgroups: true,
			Ptrace: true, Pdeathsig: unix.SIGKILL,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	return child, nil
}

func sysMappings(ids []pod.IDMapping) ([]syscall.SysProcIDMap, error) {
	if len(ids) == 0 {
		return nil, fmt.Errorf("a user namespace without ids: %w", errdefs.ErrInvalidArgument)
	}
	all := make([]syscall.SysProcIDMap, 0, len(ids))
	for _, m := range ids {
		all = append(all, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Length)})
	}
	return all, nil
}

func enter(path string, flag int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Setns(fd, flag); err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return nil
}

// HostID is the node's id for an id inside; it says no where ids do not map it.
func HostID(ids []pod.IDMapping, inside uint32) (uint32, bool) {
	for _, m := range ids {
		if inside >= m.ContainerID && inside-m.ContainerID < m.Length {
			return m.HostID + (inside - m.ContainerID), true
		}
	}
	return 0, false
}

// becomeRootOf makes the calling thread, and no other, the user that is root inside.
func becomeRootOf(uids []pod.IDMapping) error {
	root, ok := HostID(uids, 0)
	if !ok {
		return fmt.Errorf("a user namespace without root: %w", errdefs.ErrInvalidArgument)
	}
	const unchanged = math.MaxUint32
	// unix.Setresuid would change every thread.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, unchanged, uintptr(root), unchanged); errno != 0 {
		return fmt.Errorf("become root of the user namespace: %w", errno)
	}
	return nil
}
