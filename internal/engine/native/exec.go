package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/engine"
	"gantry/internal/keeper"
	"gantry/internal/pod"
)

// killWait bounds the wait for an exec that was killed because its context ended.
const killWait = 10 * time.Second

// Exec runs a process with the container's identity. Its pipes are the process's own: no bytes pass
// through the keeper.
func (e *Engine) Exec(ctx context.Context, key pod.Key, req *engine.Exec) (int32, error) {
	r, err := e.readContainer(key)
	if err != nil {
		return 0, err
	}
	process, err := execProcess(r.Process, req)
	if err != nil {
		return 0, err
	}
	s := &streams{io: req.IO}
	defer s.close()
	ask := &keeper.Exec{Key: string(key), Process: process, TTY: req.TTY}
	if !req.TTY {
		if ask.Stdin, ask.Stdout, ask.Stderr, err = s.pipes(); err != nil {
			return 0, fmt.Errorf("pipes for exec: %w", err)
		}
	}
	session, err := e.opts.Keeper.Exec(ctx, ask)
	closeAll(ask.Stdin, ask.Stdout, ask.Stderr)
	if err != nil {
		return 0, err // the keeper's error says that it is the exec, and where
	}
	if req.TTY {
		s.terminal(session.Console)
	}
	s.start()
	exit, err := waitOrKill(ctx, session)
	if err != nil {
		return 0, err
	}
	if err = s.finish(ctx); err != nil {
		return 0, err
	}
	return exit.Code, nil
}

// waitOrKill waits for the end of the process; when ctx ends first, it kills the process with its
// children and returns ctx's error.
func waitOrKill(ctx context.Context, session *keeper.Session) (keeper.Exit, error) {
	exit, err := session.Wait(ctx)
	if err == nil {
		return exit, nil
	}
	killErr := session.Kill() //nolint:contextcheck // it ends what outlives its context
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), killWait)
	defer cancel()
	_, waitErr := session.Wait(after)
	if ctx.Err() != nil {
		return keeper.Exit{}, context.Cause(ctx)
	}
	return keeper.Exit{}, fmt.Errorf("wait for exec: %w", errors.Join(err, killErr, waitErr))
}

// execProcess is the container's process with other arguments.
func execProcess(pattern []byte, req *engine.Exec) ([]byte, error) {
	p := new(specs.Process)
	if err := json.Unmarshal(pattern, p); err != nil {
		return nil, fmt.Errorf("record of the container's process: %w", err)
	}
	p.Args, p.Terminal, p.ConsoleSize = req.Args, req.TTY, nil
	if req.TTY && !slices.ContainsFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, "TERM=") }) {
		p.Env = append(p.Env, "TERM=xterm")
	}
	data, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode process: %w", err)
	}
	return data, nil
}
