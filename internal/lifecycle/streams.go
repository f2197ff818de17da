package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// maxOutput bounds what ExecSync returns of both streams together: the kubelet receives messages of
// at most 16 MiB (its maxMsgSize), framing included.
const maxOutput = 16<<20 - 64<<10

// ExecSync runs args in a container until they end or timeout has passed; 0 is no limit. Past it the
// process is killed and the error is context.DeadlineExceeded. Output beyond the bound is discarded
// and counted.
func (m *Manager) ExecSync(ctx context.Context, id string, args []string, timeout time.Duration) (*pod.ExecResult, error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	room := &bound{left: maxOutput}
	out, errOut := &boundedBuffer{bound: room}, &boundedBuffer{bound: room}
	code, err := m.Exec(ctx, id, &engine.Exec{Args: args, IO: engine.IO{Stdout: out, Stderr: errOut}})
	if err != nil {
		if timeout > 0 && errors.Is(ctx.Err(), context.DeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
		}
		return nil, err
	}
	room.mu.Lock()
	defer room.mu.Unlock()
	return &pod.ExecResult{Stdout: out.buf.Bytes(), Stderr: errOut.buf.Bytes(), ExitCode: code, Discarded: room.discarded}, nil
}

// bound is the room that several buffers share.
type bound struct {
	mu        sync.Mutex
	left      int   // guarded by mu
	discarded int64 // guarded by mu
}

// boundedBuffer keeps what there is room for and takes the rest without an error, so that the
// process never blocks on its output.
type boundedBuffer struct {
	bound *bound
	buf   bytes.Buffer // guarded by bound.mu
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	b.bound.mu.Lock()
	defer b.bound.mu.Unlock()
	keep := min(len(p), b.bound.left)
	b.buf.Write(p[:keep])
	b.bound.left -= keep
	b.bound.discarded += int64(len(p) - keep)
	return len(p), nil
}

// Exec runs a further process in a running container.
func (m *Manager) Exec(ctx context.Context, id string, req *engine.Exec) (int32, error) {
	c, err := m.runningContainer(id)
	if err != nil {
		return 0, err
	}
	if len(req.Args) == 0 {
		return 0, fmt.Errorf("exec without a command: %w", errdefs.ErrInvalidArgument)
	}
	return c.pod.engine.Exec(ctx, c.key, req)
}

// Attach connects a client to the streams of a running container.
func (m *Manager) Attach(ctx context.Context, id string, s engine.IO) error {
	c, err := m.runningContainer(id)
	if err != nil {
		return err
	}
	return c.pod.engine.Attach(ctx, c.key, s)
}

// ReopenLog opens the log of a running container anew, after it was renamed away.
func (m *Manager) ReopenLog(ctx context.Context, id string) error {
	c, err := m.runningContainer(id)
	if err != nil {
		return err
	}
	if r, ok := c.pod.engine.(engine.LogReopener); ok {
		return r.ReopenLog(ctx, c.key)
	}
	if m.opts.Logs == nil {
		return fmt.Errorf("reopen the log of container %s: %w", id, errdefs.ErrNotImplemented)
	}
	return m.opts.Logs.ReopenLog(ctx, string(c.key))
}

func (m *Manager) runningContainer(id string) (*containerEntry, error) {
	c, err := m.index.container(id)
	if err != nil {
		return nil, err
	}
	is := c.seen()
	if is == nil {
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	if is.State != pod.ContainerRunning {
		return nil, fmt.Errorf("container %s is %s, not running: %w", id, is.State, errdefs.ErrFailedPrecondition)
	}
	return c, nil
}
