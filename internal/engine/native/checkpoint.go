package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/checkpoint"
	"gantry/internal/engine"
	"gantry/internal/image"
	"gantry/internal/ociruntime"
	"gantry/internal/pod"
)

var (
	_ engine.Pauser       = (*Engine)(nil)
	_ engine.Checkpointer = (*Engine)(nil)
)

// settleTime is how long a runtime may go on that a server which died had begun a capture with.
const settleTime = 20 * time.Second

// captureFile, in a container's directory, names the directory to which it is being captured.
const captureFile = "capture"

// Pause freezes the container's processes through its runtime.
func (e *Engine) Pause(ctx context.Context, key pod.Key) error {
	r, err := e.readContainer(key)
	if err != nil {
		return err
	}
	runtime := r.program()
	if err = ociruntime.Pause(ctx, runtime, string(key)); err != nil && e.status(ctx, runtime, key) != "paused" {
		return fmt.Errorf("pause container %s: %w", key.Short(), err)
	}
	return nil
}

// Resume waits for what a crash left of a capture and lets the container's processes go on.
func (e *Engine) Resume(ctx context.Context, key pod.Key) error {
	r, err := e.readContainer(key)
	if err != nil {
		return absentIsFine(err)
	}
	if dir, readErr := os.ReadFile(filepath.Join(e.containerDir(key), captureFile)); readErr == nil {
		if err = ociruntime.Settle(ctx, string(dir), settleTime); err != nil {
			return fmt.Errorf("resume container %s: %w", key.Short(), err)
		}
		_ = os.Remove(filepath.Join(e.containerDir(key), captureFile))
	}
	runtime := r.program()
	if err = ociruntime.Resume(ctx, runtime, string(key)); err != nil {
		// A runtime refuses what is not paused, and does not know what is gone.
		if s := e.status(ctx, runtime, key); s == "paused" || s == "" && ctx.Err() != nil {
			return fmt.Errorf("resume container %s: %w", key.Short(), err)
		}
	}
	return nil
}

// status is what the runtime says of the container; "" when it says nothing.
func (e *Engine) status(ctx context.Context, runtime ociruntime.Runtime, key pod.Key) string {
	s, err := ociruntime.Status(ctx, runtime, string(key))
	if err != nil {
		return ""
	}
	return s
}

// CanCheckpoint asks the handler's runtime what it can do, and looks for what it needs.
func (e *Engine) CanCheckpoint(ctx context.Context, handler string) error {
	if e.opts.Changes == nil {
		return fmt.Errorf("checkpoint: the image store does not tell changes: %w", errdefs.ErrNotImplemented)
	}
	runtime, err := e.runtime(ctx, handler)
	if err != nil {
		return err
	}
	f, err := e.features(ctx, runtime.Path)
	if err != nil {
		return err
	}
	if gap := f.CheckpointGap(exec.LookPath); gap != "" {
		return fmt.Errorf("checkpoint and restore: %s: %w", gap, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (e *Engine) canRestore(ctx context.Context, sandbox *sandboxRecord) error {
	if sandbox.Namespaces.User != "" {
		return fmt.Errorf("restore in a user namespace: %w", errdefs.ErrNotImplemented)
	}
	return e.CanCheckpoint(ctx, sandbox.Handler)
}

// Checkpoint writes the container's processes, changes and OCI spec to dir.
func (e *Engine) Checkpoint(ctx context.Context, key pod.Key, dir string) (err error) {
	r, err := e.readContainer(key)
	if err != nil {
		return err
	}
	if r.UserNS {
		return fmt.Errorf("checkpoint in a user namespace: %w", errdefs.ErrNotImplemented)
	}
	if err = e.CanCheckpoint(ctx, r.Handler); err != nil {
		return err
	}
	images := filepath.Join(dir, checkpoint.ImagesDir)
	if err = os.Mkdir(images, 0o700); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", key.Short(), err)
	}
	// Resume of a successor looks for the runtime by its argument.
	note := filepath.Join(e.containerDir(key), captureFile)
	if err = os.WriteFile(note, []byte(images), 0o600); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", key.Short(), err)
	}
	defer func() { _ = os.Remove(note) }()
	if err = ociruntime.Checkpoint(ctx, r.program(), string(key), images, dir); err != nil {
		settled := ociruntime.Settle(context.WithoutCancel(ctx), images, 0)
		err = errors.Join(err, settled)
		return fmt.Errorf("checkpoint container %s: %w", key.Short(), err)
	}
	e.opts.Hook("container/captured")
	spec, err := os.ReadFile(filepath.Join(e.containerDir(key), configFile))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, checkpoint.SpecFile), spec, 0o600)
	}
	if err != nil {
		return fmt.Errorf("checkpoint container %s: %w", key.Short(), err)
	}
	return e.captureRootfs(ctx, key, dir)
}

func (e *Engine) captureRootfs(ctx context.Context, key pod.Key, dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, checkpoint.RootfsDiff), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("checkpoint container %s: %w", key.Short(), err)
	}
	deleted, err := e.opts.Changes.Diff(ctx, string(key), f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("checkpoint container %s: %w", key.Short(), err)
	}
	return checkpoint.WriteDeleted(dir, deleted)
}

// containerRootfs prepares the root file system from the image, and what a checkpoint has changed in it.
func (e *Engine) containerRootfs(ctx context.Context, req *engine.Create, m image.Mount) (string, error) {
	if req.Restore == nil {
		return e.opts.Rootfs.Prepare(ctx, m)
	}
	deleted, err := checkpoint.Deleted(req.Restore.Dir)
	if err != nil {
		return "", err
	}
	diff, err := os.Open(filepath.Join(req.Restore.Dir, checkpoint.RootfsDiff))
	if errors.Is(err, fs.ErrNotExist) { // nothing was changed
		return e.opts.Changes.PrepareFrom(ctx, m, strings.NewReader(""), deleted)
	}
	if err != nil {
		return "", fmt.Errorf("restore: %w", err)
	}
	defer func() { _ = diff.Close() }()
	return e.opts.Changes.PrepareFrom(ctx, m, diff, deleted)
}

func restoreImages(r *engine.Restore) string {
	if r == nil {
		return ""
	}
	return filepath.Join(r.Dir, checkpoint.ImagesDir)
}

// restoreProcess holds the process of spec against the one that was checkpointed, or takes that.
func restoreProcess(spec *specs.Spec, r *containerRecord, restore *engine.Restore) error {
	var was specs.Spec
	if err := checkpoint.Spec(restore.Dir, &was); err != nil {
		return err
	}
	if was.Process == nil {
		return fmt.Errorf("restore: the checkpoint's %s has no process: %w", checkpoint.SpecFile, errdefs.ErrInvalidArgument)
	}
	if restore.Exact {
		return sameProcess(spec.Process, was.Process)
	}
	if spec.Process.Terminal != was.Process.Terminal {
		return differs("tty", spec.Process.Terminal, was.Process.Terminal)
	}
	spec.Process.Args, spec.Process.Env, spec.Process.Cwd = was.Process.Args, was.Process.Env, was.Process.Cwd
	spec.Process.User = was.Process.User
	r.Created.User = &engine.User{UID: int64(was.Process.User.UID), GID: int64(was.Process.User.GID)}
	for _, g := range was.Process.User.AdditionalGids {
		r.Created.User.Groups = append(r.Created.User.Groups, int64(g))
	}
	return nil
}

// sameProcess names the first thing in which a process differs from the one that was checkpointed.
func sameProcess(is, was *specs.Process) error {
	env := func(p *specs.Process) []string {
		all := slices.DeleteFunc(slices.Clone(p.Env), func(v string) bool { return strings.HasPrefix(v, "HOSTNAME=") })
		slices.Sort(all)
		return all
	}
	switch {
	case !slices.Equal(is.Args, was.Args):
		return differs("the command", is.Args, was.Args)
	case is.Cwd != was.Cwd:
		return differs("the working directory", is.Cwd, was.Cwd)
	case is.Terminal != was.Terminal:
		return differs("tty", is.Terminal, was.Terminal)
	case is.User.UID != was.User.UID || is.User.GID != was.User.GID:
		return differs("the user", is.User, was.User)
	case !slices.Equal(env(is), env(was)):
		return differs("the environment", env(is), env(was))
	}
	return nil
}

func differs(what string, is, was any) error {
	a, err := json.Marshal(is)
	b, other := json.Marshal(was)
	return fmt.Errorf("restore: %s is %s, that of the checkpoint is %s: %w", what, a, b, errors.Join(errdefs.ErrInvalidArgument, err, other))
}
