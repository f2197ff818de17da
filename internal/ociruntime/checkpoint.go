package ociruntime

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// CheckpointGap says what is missing for checkpoints, "" when nothing is. CRIU is a program of its own
// that crun and runc run; gVisor writes its sandbox itself.
func (f *Features) CheckpointGap(lookPath func(string) (string, error)) string {
	if !f.Checkpoints {
		return fmt.Sprintf("%s %s is built without checkpoints (CRIU)", f.Name, f.Version)
	}
	if f.Name == "runsc" {
		return ""
	}
	if _, err := lookPath("criu"); err != nil {
		return "the program criu, which " + f.Name + " needs for checkpoints, is not on PATH"
	}
	return ""
}

// Pause freezes the container id, Resume lets it go on.
func Pause(ctx context.Context, r Runtime, id string) error { return run(ctx, r, nil, "pause", id) }

// Resume lets a paused container go on.
func Resume(ctx context.Context, r Runtime, id string) error { return run(ctx, r, nil, "resume", id) }

// Status is what the runtime calls the container id: "created", "running", "paused", "stopped".
func Status(ctx context.Context, r Runtime, id string) (string, error) {
	cmd := command(ctx, r.Path, slices.Concat(r.Args, []string{"state", id})...)
	cmd.WaitDelay = answering
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s state: %w", filepath.Base(r.Path), err)
	}
	_, after, ok := bytes.Cut(out, []byte(`"status"`))
	words := bytes.SplitN(after, []byte(`"`), 3)
	if !ok || len(words) < 3 {
		return "", fmt.Errorf("%s state: no status in %q", filepath.Base(r.Path), out)
	}
	return string(words[1]), nil
}

// Checkpoint writes the processes of the container id, which go on, to the directory images. CRIU's log
// goes to the directory work; when it fails, the errors in it are in the error. When ctx ends, the runtime and
// what it runs are killed.
func Checkpoint(ctx context.Context, r Runtime, id, images, work string) error {
	err := run(ctx, r, []string{"checkpoint", "--image-path", images, "--work-path", work, "--leave-running"}, id)
	if err != nil {
		return fmt.Errorf("%w%s", err, dumpErrors(filepath.Join(work, "dump.log")))
	}
	return nil
}

// run gives one command.
func run(ctx context.Context, r Runtime, options []string, words ...string) error {
	name := words[0]
	if options != nil {
		name = options[0]
	}
	return give(ctx, command(ctx, r.Path, slices.Concat(r.Args, options, words)...), name)
}

// How long a helper that a runtime has left, or that is killed with it, may hold its output: one that says nothing of use,
// and one that is the answer and must be read.
const (
	lingering = time.Second
	answering = 10 * time.Second
)

// command is a runtime as a process group of its own, so that its helpers end with it when ctx does.
func command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = lingering
	return cmd
}

// give gives the command of that name, whose output is of use only where it fails.
func give(ctx context.Context, cmd *exec.Cmd, name string) error {
	out, err := cmd.CombinedOutput()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil { // a helper that is left may hold its output
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s %s was broken off: %w", filepath.Base(cmd.Path), name, context.Cause(ctx))
	}
	return fmt.Errorf("%s %s: %w%s", filepath.Base(cmd.Path), name, unwrapped(err), said(out))
}

// dumpErrors are the last errors in CRIU's log, for an error's end.
func dumpErrors(log string) string {
	f, err := os.Open(log)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	const most = 3
	var last []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if _, text, ok := strings.Cut(lines.Text(), "Error "); ok {
			last = append(last, text)
			last = last[max(0, len(last)-most):]
		}
	}
	if len(last) == 0 {
		return ""
	}
	return "; CRIU says " + strings.Join(last, ", ")
}

// Settle waits until no process has the path among its arguments, because a runtime that a server
// began may outlive it; what is there when patience has passed is killed with its process group.
func Settle(ctx context.Context, path string, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		pid := runs(path)
		if pid == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("process %d works on %s: %w", pid, path, context.Cause(ctx))
		}
		if time.Now().After(deadline) {
			_ = unix.Kill(-pid, unix.SIGKILL)
			_ = unix.Kill(pid, unix.SIGKILL)
			deadline = time.Now().Add(time.Second)
		}
		if err := awaitEnd(pid, time.Until(deadline)); err != nil {
			return err
		}
	}
}

func awaitEnd(pid int, limit time.Duration) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(0, limit.Milliseconds()))+1)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for %d: %w", pid, err)
	}
	return nil
}

// runs returns a process, other than this one, that has path among its arguments; 0 when there is none.
func runs(path string) int {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(line)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		data, _ := os.ReadFile(line)
		if slices.Contains(strings.Split(string(data), "\x00"), path) {
			return pid
		}
	}
	return 0
}
