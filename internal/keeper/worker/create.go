package worker

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

// create makes a container. One that exists is its answer; one that was half made when a worker
// died is removed first.
func (w *Worker) create(req wire.Create) (wire.Pid, error) {
	if err := check(&req); err != nil {
		return wire.Pid{}, err
	}
	w.mu.Lock()
	c := w.containers[req.Key]
	w.mu.Unlock()
	if c != nil {
		if !c.half() {
			c.mu.Lock()
			defer c.mu.Unlock()
			return wire.Pid{Pid: c.Pid}, nil
		}
		if err := c.scrap(); err != nil {
			return wire.Pid{}, fmt.Errorf("remove half-made container %s: %w", req.Key, err)
		}
	}
	c = w.newContainer(saved{Create: req, Phase: phaseCreating})
	w.mu.Lock()
	w.containers[req.Key] = c
	w.mu.Unlock()
	if err := c.make(); err != nil {
		if undo := c.scrap(); undo != nil {
			log.Printf("remove container %s after a failed create: %v", req.Key, undo)
		}
		return wire.Pid{}, fmt.Errorf("create container %s: %w", req.Key, err)
	}
	return wire.Pid{Pid: c.Pid}, nil
}

func check(req *wire.Create) error {
	switch {
	case !validKey(req.Key):
		return wire.Errorf(wire.CodeInvalid, "container key %q: letters, digits and ._-+ only", req.Key)
	case req.Runtime.Path == "":
		return wire.Errorf(wire.CodeInvalid, "container %s: no OCI runtime", req.Key)
	case !filepath.IsAbs(req.Bundle):
		return wire.Errorf(wire.CodeInvalid, "container %s: bundle %q is not absolute", req.Key, req.Bundle)
	case req.LogPath != "" && !filepath.IsAbs(req.LogPath):
		return wire.Errorf(wire.CodeInvalid, "container %s: log path %q is not absolute", req.Key, req.LogPath)
	}
	if _, err := os.Stat(filepath.Join(req.Bundle, "config.json")); errors.Is(err, os.ErrNotExist) {
		return wire.Errorf(wire.CodeNotFound, "container %s: bundle: %v", req.Key, err)
	}
	return nil
}

// make runs the steps of a create. The first record says that they began; the last, that they ended.
func (c *container) make() error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("container directory: %w", err)
	}
	c.w.reached(createDirectory)
	if err := c.save(phaseCreating); err != nil {
		return err
	}
	c.w.reached(createIntent)
	if err := c.prepare(); err != nil {
		return err
	}
	c.w.reached(createStreams)
	if c.MadeLog {
		if err := c.save(phaseCreating); err != nil {
			return err
		}
	}
	if c.Restore != "" { // the rest is start's
		return c.save(phaseCreated)
	}
	if err := c.invokeCreate(); err != nil {
		return err
	}
	c.w.reached(createRuntime)
	if err := c.adopt(); err != nil {
		return err
	}
	c.w.reached(createClaim)
	if err := c.connect(); err != nil {
		return err
	}
	if err := c.save(phaseCreated); err != nil {
		return err
	}
	c.w.reached(createRecord)
	c.run()
	return nil
}

// adopt takes over the process that the runtime has made.
func (c *container) adopt() error {
	pid, err := readPid(filepath.Join(c.dir, "pid"))
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.Pid, c.Began, c.Program = pid, startTime(pid), programOf(pid)
	c.mu.Unlock()
	return c.claim()
}

// invokeCreate has the runtime create the container on its FIFOs or on a terminal.
func (c *container) invokeCreate() error {
	return c.invokeOnStreams("create", "--bundle", c.Bundle, "--pid-file", filepath.Join(c.dir, "pid"))
}

func (c *container) invokeOnStreams(args ...string) error {
	if c.TTY {
		return withConsole(c.dir, func(socket string) error {
			return invoke(c.wanted, c.Runtime, c.dir, [3]*os.File{}, append(args, "--console-socket", socket, c.Key)...)
		}, func(master int) error {
			return c.keep(map[string]int{fileMaster: master})
		})
	}
	var stdio [3]*os.File
	defer func() {
		for _, f := range stdio {
			_ = f.Close()
		}
	}()
	for i, name := range []string{"stdin", "stdout", "stderr"} {
		if i == 0 && !c.Stdin {
			continue
		}
		// Read-write, so that nothing that happens to the keeper is an end or a SIGPIPE. Only a
		// stdin that is to end may end.
		flags := unix.O_RDWR
		if i == 0 && c.StdinOnce {
			flags = unix.O_RDONLY
		}
		fd, err := c.fifo(name, flags)
		if err != nil {
			return err
		}
		stdio[i] = os.NewFile(uintptr(fd), name)
	}
	return invoke(c.wanted, c.Runtime, c.dir, stdio, append(args, c.Key)...)
}

// withConsole runs an OCI command that sends a terminal's master to the socket it is given.
func withConsole(dir string, command func(socket string) error, got func(master int) error) error {
	path := filepath.Join(dir, "console.sock")
	listener, err := wire.Listen(path)
	if err != nil {
		return fmt.Errorf("console socket: %w", err)
	}
	defer func() { _ = unix.Close(listener); _ = os.Remove(path) }()
	address, done, err := wire.Address(path)
	if err != nil {
		return fmt.Errorf("console socket: %w", err)
	}
	defer done()
	if err = command(address); err != nil {
		return err
	}
	master, err := wire.ReceiveOne(listener)
	if err != nil {
		return fmt.Errorf("take terminal from the OCI runtime: %w", err)
	}
	return got(master)
}

// claim has the holder tell how the container ends. It may have ended already.
func (c *container) claim() error {
	m := wire.Claim{Key: c.Key, Pid: c.Pid, Dir: c.dir}
	if _, ok := c.file(filePidfd); !ok {
		if fd, err := openPidfd(c.Pid, c.Began); err == nil {
			if err := c.keep(map[string]int{filePidfd: fd}); err != nil {
				return err
			}
		}
	}
	if fd, ok := c.file(filePidfd); ok {
		return c.w.tell(wire.OpClaim, m, fd)
	}
	return c.w.tell(wire.OpClaim, m)
}

// openPidfd opens a pidfd of the process pid that began at that time, and of no other.
func openPidfd(pid int, began uint64) (int, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return -1, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	if startTime(pid) != began || began == 0 {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("pidfd of %d: %w", pid, unix.ESRCH)
	}
	return fd, nil
}

func readPid(path string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read the OCI runtime's pid file: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("read the OCI runtime's pid file: %q", data)
	}
	return pid, nil
}

// scrap removes what a create left, whatever it is.
func (c *container) scrap() error {
	killOrphans("create", filepath.Join(c.dir, "pid"))
	return c.remove()
}

// remove takes a container away: at the runtime, its processes, its descriptors, its directory.
func (c *container) remove() error {
	if c.recovered {
		awaitOrphans("delete", c.Key)
	}
	err := errors.ErrUnsupported
	if c.DirectDelete && !c.half() {
		err = c.deleteDirect()
	}
	if errors.Is(err, errors.ErrUnsupported) {
		err = invoke(context.Background(), c.Runtime, c.dir, [3]*os.File{}, "delete", "--force", c.Key)
	}
	switch {
	case err == nil:
	case noRuntime(err) && c.half(): // hence nothing that it made
	case overdue(err):
		log.Printf("container %s is removed without its OCI runtime: %v", c.Key, err)
		if direct := c.deleteDirect(); !errors.Is(direct, errors.ErrUnsupported) {
			err = direct
		}
		if err != nil {
			return err
		}
	default:
		return runtimeGone(err)
	}
	c.w.reached(deleteRuntime)
	// What a program left: processes of a shared PID namespace, or of a create that was interrupted.
	if len(cgroupProcesses(c.CgroupPath)) > 0 || c.half() {
		killCgroup(c.CgroupPath, unix.SIGKILL)
		awaitEmpty(c.CgroupPath)
		removeCgroup(c.CgroupPath)
	}
	if c.half() {
		removeMade(c.LogPath, c.MadeLog)
	} else if !c.unrestored() {
		c.awaitEnd()
	}
	c.w.reached(deleteCgroup)
	if err := c.release(); err != nil {
		return err
	}
	c.w.reached(deleteStreams)
	if err := removeDir(c.dir); err != nil {
		return fmt.Errorf("remove container directory: %w", err)
	}
	c.w.reached(deleteDirectory)
	c.w.mu.Lock()
	delete(c.w.containers, c.Key)
	c.w.mu.Unlock()
	c.w.forgetExecs(c.Key)
	return nil
}
