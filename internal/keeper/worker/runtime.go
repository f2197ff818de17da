package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

// How long an OCI runtime may take before it is killed. A create mounts what the container asked for. A
// delete holds up the removal of a pod; what one that hangs was to do is done without it.
const (
	limit       = 2 * time.Minute
	createLimit = 4 * time.Minute
	deleteLimit = 10 * time.Second
)

// cloneDirEnv names the directory in which crun, as runc did, mounts its own program read-only for a
// moment, lest a container write to it (CVE-2019-5736). One that is killed in that moment leaves the mount:
// in a directory of ours, and not in /tmp, somebody takes it away.
const cloneDirEnv = "_LIBCONTAINER_STATEDIR"

// removeDir removes a directory that OCI runtimes have worked in, with what killed ones left mounted.
func removeDir(dir string) error {
	clones, _ := filepath.Glob(filepath.Join(dir, "*run.??????")) // crun's and runc's
	for _, path := range clones {
		_ = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // most are no mounts
	}
	return os.RemoveAll(dir)
}

// errRemoved is why a command is broken off whose container is to be removed.
var errRemoved = wire.Errorf(wire.CodeAborted, "broken off: the container is to be removed")

// invoke runs one command of an OCI runtime, the first of args, with the given stdio (nil entries are
// /dev/null). What the runtime says goes to a log in dir and, if it fails, into the error. The
// runtime is killed when ctx ends.
func invoke(ctx context.Context, rt wire.Runtime, dir string, stdio [3]*os.File, args ...string) error {
	limit := limit
	switch args[0] {
	case "create", "restore":
		limit = createLimit
	case "delete":
		limit = deleteLimit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	said := filepath.Join(dir, "runtime.log")
	_ = os.Remove(said)
	all := append(append([]string{}, rt.Args...), "--log", said, "--log-format", "json")
	cmd := exec.CommandContext(ctx, rt.Path, append(all, args...)...)
	cmd.Env = append(os.Environ(), cloneDirEnv+"="+dir)
	if fd, ok := readOnly(rt); ok {
		defer func() { _ = unix.Close(fd) }()
		cmd.Path = descriptorPath(fd)
	}
	// The runtime's own helpers are killed with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	if stdio[0] != nil {
		cmd.Stdin = stdio[0]
	}
	if stdio[1] != nil {
		cmd.Stdout = stdio[1]
	}
	if stdio[2] != nil {
		cmd.Stderr = stdio[2]
	}
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), errRemoved):
		return fmt.Errorf("%s %s: %w", filepath.Base(rt.Path), args[0], errRemoved)
	case ctx.Err() != nil:
		return wire.Errorf(wire.CodeDeadline, "%s %s: no answer in %v", rt.Path, args[0], limit)
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return wire.Errorf(wire.CodeNotFound, "OCI runtime %s: %v", rt.Path, err)
	case errors.Is(err, fs.ErrPermission):
		return wire.Errorf(wire.CodePrecondition, "OCI runtime %s: %v", rt.Path, err)
	case killed(err):
		return wire.Errorf(wire.CodeUnavailable, "%s %s was killed: %s", filepath.Base(rt.Path), args[0], complaint(said, err))
	}
	return wire.Errorf(wire.CodeUnknown, "%s %s: %s", filepath.Base(rt.Path), args[0], complaint(said, err))
}

// readOnly opens a runtime's program as a mount of its own that is nowhere and can't be written to, so that the runtime
// need not make one itself and execute once more from it. Not ok where it would not, where the kernel can't
// (mount_setattr came with Linux 5.12), and for a script, whose interpreter could not open it.
func readOnly(rt wire.Runtime) (fd int, ok bool) {
	if !rt.Clones {
		return -1, false
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, rt.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, false
	}
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if err != nil || !isBinary(descriptorPath(fd)) {
		_ = unix.Close(fd)
		return -1, false
	}
	return fd, true
}

// descriptorPath names a descriptor of this process. In a child, where /proc/self is that, the number may already mean
// another file.
func descriptorPath(fd int) string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)
}

func isBinary(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	magic := make([]byte, 4)
	_, err = io.ReadFull(f, magic)
	return err == nil && string(magic) == "\x7fELF"
}

// killed says whether somebody ended the runtime before it gave an answer: that says nothing about
// the container.
func killed(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled()
}

// overdue says whether err is invoke's for a runtime that did not answer in time.
func overdue(err error) bool {
	var e *wire.Error
	return errors.As(err, &e) && e.Code == wire.CodeDeadline
}

// unanswered says whether err came in place of the runtime's answer.
func unanswered(err error) bool {
	var e *wire.Error
	return errors.As(err, &e) && e.Code == wire.CodeUnavailable
}

// runtimeGone returns err, of the class unavailable if it says that there is no OCI runtime: to who
// asks for a container, not found is the container.
func runtimeGone(err error) error {
	if noRuntime(err) {
		return wire.Errorf(wire.CodeUnavailable, "%v", err)
	}
	return err
}

// noRuntime says whether err is invoke's for a runtime that is not there.
func noRuntime(err error) bool {
	var e *wire.Error
	return errors.As(err, &e) && e.Code == wire.CodeNotFound
}

// complaint is what the runtime wrote before it failed.
func complaint(path string, failure error) string {
	data, err := os.ReadFile(path)
	if err != nil || len(bytes.TrimSpace(data)) == 0 {
		return failure.Error()
	}
	data = data[max(0, len(data)-8<<10):]
	var texts []string
	for line := range bytes.Lines(data) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) != nil {
			texts = append(texts, strings.TrimSpace(string(line)))
		} else if entry.Level == "" || entry.Level == "error" || entry.Level == "fatal" {
			texts = append(texts, strings.TrimSpace(entry.Msg))
		}
	}
	if len(texts) == 0 {
		return failure.Error()
	}
	return strings.Join(texts, ": ")
}
