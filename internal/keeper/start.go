package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"gantry/internal/keeper/wire"
)

func (c *Client) socket() string { return filepath.Join(c.opt.StateDir, wire.SocketName) }

// start starts a keeper in a session of its own and waits until it answers or finds that another
// one does. It outlives this process, its process group and its cgroup.
func (c *Client) start(ctx context.Context) error {
	if err := os.MkdirAll(c.opt.StateDir, 0o700); err != nil {
		return fmt.Errorf("keeper state directory: %w", err)
	}
	said, err := os.OpenFile(filepath.Join(c.opt.StateDir, "keeper.log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("keeper log: %w", err)
	}
	defer func() { _ = said.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	defer func() { _ = r.Close() }()
	// Not CommandContext: the keeper outlives the context.
	cmd := exec.Command(c.opt.Binary, "--state", c.opt.StateDir, "--cgroup", c.opt.CgroupPath, "--ready") //nolint:noctx // see above
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = said, said, []*os.File{w}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("start the keeper: %w: %w", err, errdefs.ErrNotFound)
	case err != nil:
		return fmt.Errorf("start the keeper: %w", err)
	}
	go func() { _ = cmd.Wait() }() // reaps it if it ends before this process
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer stop()
	answer, err := io.ReadAll(r)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	switch text := strings.TrimSpace(string(answer)); text {
	case "ok":
		c.opt.Log.Info("keeper started", "pid", cmd.Process.Pid, "state", c.opt.StateDir)
	case "":
		return fmt.Errorf("the keeper ended at once, see %s: %w", said.Name(), errdefs.ErrUnavailable)
	default: // the caller tries the socket again: another keeper may have been faster
		c.opt.Log.Warn("keeper not started", "reason", text)
	}
	return nil
}
