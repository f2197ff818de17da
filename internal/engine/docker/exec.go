package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

const (
	// startTime is how long a process of an exec may take to begin, as exitTime is.
	startTime = 30 * time.Second
	// killTime is how long a caller that gives an exec up waits for the end of its process, which comes all the same.
	killTime = 3 * time.Second
	// exitTime is how long Docker may take to know of an end after the output has ended: no time at all, but the
	// machine may have much else to do.
	exitTime = 30 * time.Second
)

// Exec runs a further process in a running container. Docker's API has no way to end one: when ctx
// ends, the process is killed by its pid, with all its children, also where Docker has yet to begin it.
func (e *Engine) Exec(ctx context.Context, key pod.Key, req *engine.Exec) (int32, error) {
	is, err := e.find(ctx, key)
	if err != nil {
		return 0, err
	}
	id, err := e.createExec(ctx, is.id, req)
	if err != nil {
		return 0, execError(key, err)
	}
	conn, err := call(ctx, e.daemon, func(ctx context.Context) (client.ExecAttachResult, error) {
		return e.daemon.api.ExecAttach(ctx, id, client.ExecAttachOptions{TTY: req.TTY})
	})
	if err != nil {
		if ctx.Err() == nil && !errdefs.IsUnavailable(err) {
			return 0, execError(key, err)
		}
		e.killExec(context.WithoutCancel(ctx), id) // Docker may have heard of it, and begin the process
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return 0, execError(key, err)
	}
	defer conn.Close()
	s := session{conn: &conn.HijackedResponse, tty: req.TTY, io: req.IO, resize: func(ctx context.Context, size engine.Size) error {
		return e.resizeExec(ctx, id, size)
	}}
	if err = s.run(ctx); err != nil {
		if ctx.Err() != nil {
			e.killExec(context.WithoutCancel(ctx), id)
			return 0, context.Cause(ctx)
		}
		return 0, e.daemon.classify(err)
	}
	return e.execExit(ctx, id)
}

// execError says with its class that a container does not run.
func execError(key pod.Key, err error) error {
	if errdefs.IsConflict(err) {
		return fmt.Errorf("exec: container %s does not run: %w", key.Short(), errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("exec: %w", err)
}

func (e *Engine) createExec(ctx context.Context, container string, req *engine.Exec) (string, error) {
	r, err := call(ctx, e.daemon, func(ctx context.Context) (client.ExecCreateResult, error) {
		return e.daemon.api.ExecCreate(ctx, container, client.ExecCreateOptions{
			Cmd: req.Args, TTY: req.TTY, AttachStdin: req.IO.Stdin != nil, AttachStdout: true, AttachStderr: !req.TTY,
		})
	})
	return r.ID, err
}

// resizeExec asks until the process is there: Docker answers not found, or a conflict, before.
func (e *Engine) resizeExec(ctx context.Context, id string, size engine.Size) error {
	return retry(ctx, startTime, func() (bool, error) {
		_, err := call(ctx, e.daemon, func(ctx context.Context) (client.ExecResizeResult, error) {
			return e.daemon.api.ExecResize(ctx, id, client.ExecResizeOptions{Height: uint(size.Height), Width: uint(size.Width)})
		})
		return err == nil || errdefs.IsUnavailable(err), err
	})
}

// execExit is the exit code. The output ends a moment before Docker knows it.
func (e *Engine) execExit(ctx context.Context, id string) (int32, error) {
	var code int32
	err := retry(ctx, exitTime, func() (bool, error) {
		x, err := e.inspectExec(ctx, id)
		if err != nil {
			return true, fmt.Errorf("exec: %w", err)
		}
		code = int32(x.ExitCode)
		if x.Running {
			return false, fmt.Errorf("exec: docker says the process runs on: %w", errdefs.ErrUnavailable)
		}
		return true, nil
	})
	return code, err
}

func (e *Engine) inspectExec(ctx context.Context, id string) (client.ExecInspectResult, error) {
	return call(ctx, e.daemon, func(ctx context.Context) (client.ExecInspectResult, error) {
		return e.daemon.api.ExecInspect(ctx, id, client.ExecInspectOptions{})
	})
}

// killExec kills the process and what it started, also one that has yet to begin. It returns when that is done; where
// it takes long it goes on behind.
func (e *Engine) killExec(ctx context.Context, id string) {
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		own, cancel := context.WithTimeout(ctx, undoTime)
		defer cancel()
		if err := retry(own, startTime, func() (bool, error) { return e.tryKillExec(own, id) }); err != nil {
			e.log.Warn("a process that nobody waits for could not be killed", "exec", id, "error", err)
		}
	}()
	t := time.NewTimer(killTime)
	defer t.Stop()
	select {
	case <-killed:
	case <-t.C:
	}
}

// tryKillExec says whether there is nothing left to kill. Docker calls a process running before it has begun.
func (e *Engine) tryKillExec(ctx context.Context, id string) (done bool, err error) {
	x, err := e.inspectExec(ctx, id)
	switch {
	case errdefs.IsNotFound(err): // its container is gone
		return true, nil
	case err != nil:
		return false, err
	case x.PID != 0 && x.Running:
		killTree(x.PID)
		return true, nil
	}
	return x.PID != 0 || !x.Running && x.ExitCode != 0, nil // it has ended, or could not begin
}

// killTree stops a process and its children, so that none forks meanwhile, and kills them. A fork under way comes to
// its end although its process was told to stop: the children are all there once that stands.
func killTree(pid int) {
	if pid <= 1 {
		return
	}
	pids := []int{pid}
	for i := 0; i < len(pids); i++ {
		_ = unix.Kill(pids[i], unix.SIGSTOP)
		awaitStop(pids[i])
		pids = append(pids, children(pids[i])...)
	}
	for _, p := range pids {
		_ = unix.Kill(p, unix.SIGKILL)
	}
}

// stopTime is how long a process is waited for that was told to stop: one in the middle of I/O does not.
const stopTime = time.Second

func awaitStop(pid int) {
	for waited := time.Duration(0); waited < stopTime && runs(pid); waited += time.Millisecond {
		<-time.After(time.Millisecond)
	}
}

// runs says whether a process has a thread that has neither stopped nor ended (proc_pid_stat(5)).
func runs(pid int) bool {
	tasks, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task")
	if err != nil {
		return false
	}
	for _, t := range tasks {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + t.Name() + "/stat")
		if err != nil {
			continue
		}
		// The name, in parentheses, may contain anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 0 && !strings.Contains("TtZX", fields[0]) {
			return true
		}
	}
	return false
}

// children are those of a process (proc_pid_task_children(5)).
func children(pid int) []int {
	tasks, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task")
	if err != nil {
		return nil
	}
	var all []int
	for _, t := range tasks {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + t.Name() + "/children")
		if err != nil {
			continue
		}
		for field := range strings.FieldsSeq(string(data)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, child)
			}
		}
	}
	return all
}

// retry does something until it says that it is done, or most has passed, and returns the last error.
func retry(ctx context.Context, most time.Duration, do func() (done bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		done, err := do()
		if done {
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return errors.Join(err, context.Cause(ctx))
		}
	}
}
