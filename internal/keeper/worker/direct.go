package worker

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

// What the OCI runtime would do is done here without its process where the client says that it may
// (wire.Create.DirectStart, DirectDelete): see docs/adr/0018.

// startFIFO is where a created process of crun or runc waits, in the runtime's record of the container. While it is
// there the runtime calls the container created.
const startFIFO = "exec.fifo"

// record is where the OCI runtime was told to keep what it knows of the container.
func (c *container) record() (dir string, ok bool) {
	i := slices.Index(c.Runtime.Args, "--root")
	if i < 0 || i+1 >= len(c.Runtime.Args) {
		return "", false
	}
	return filepath.Join(c.Runtime.Args[i+1], c.Key), true
}

// startDirect lets the created process go on: with a byte to the FIFO, which is then removed. The program
// does it in the other order: one that is killed in between leaves a process that nobody can start.
func (c *container) startDirect(interrupted bool) error {
	dir, ok := c.record()
	if !ok {
		return errors.ErrUnsupported
	}
	path := filepath.Join(dir, startFIFO)
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENXIO) && interrupted: // nobody waits there: the first attempt was heard
	case errors.Is(err, unix.ENXIO):
		return wire.Errorf(wire.CodeUnknown, "its process ended before it was started")
	case err != nil:
		return fmt.Errorf("%s: %w: %w", path, errors.ErrUnsupported, err)
	default:
		_, err = unix.Write(fd, []byte{0})
		_ = unix.Close(fd)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	c.w.reached(startHeard)
	c.removeStartFIFO()
	return nil
}

// removeStartFIFO makes the runtime call the container running.
func (c *container) removeStartFIFO() {
	dir, ok := c.record()
	if !ok {
		return
	}
	if err := os.Remove(filepath.Join(dir, startFIFO)); err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Printf("container %s runs, and its OCI runtime calls it created: %v", c.Key, err)
	}
}

// deleteDirect takes away what the runtime was to take away: processes, cgroup, and the runtime's record
// of the container. It is unsupported where something is left that is the runtime's to remove.
func (c *container) deleteDirect() error {
	dir, ok := c.record()
	if !ok {
		return errors.ErrUnsupported
	}
	if len(cgroupProcesses(c.CgroupPath)) > 0 {
		killCgroup(c.CgroupPath, unix.SIGKILL)
	}
	if err := c.signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("kill container %s: %w", c.Key, err)
	}
	if !c.half() {
		c.awaitEnd()
	}
	if len(removeCgroup(c.CgroupPath)) > 0 { // what was killed leaves it when it is reaped
		if left := awaitEmpty(c.CgroupPath); len(left) > 0 {
			return wire.Errorf(wire.CodeUnavailable, "processes of container %s outlive SIGKILL: %v", c.Key, left)
		}
		if left := removeCgroup(c.CgroupPath); len(left) > 0 {
			return fmt.Errorf("remove cgroup %s: %w", left[0], errors.ErrUnsupported)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the OCI runtime's record of container %s: %w", c.Key, err)
	}
	return nil
}
