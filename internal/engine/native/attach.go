package native

import (
	"context"
	"errors"
	"fmt"
	"os"

	"gantry/internal/engine"
	"gantry/internal/keeper"
	"gantry/internal/pod"
)

// Attach connects to the streams of the container's main process. Input has a session of its own,
// which ends with the client's input: that is when the keeper closes the stdin of a container whose
// first client's input is its only one.
func (e *Engine) Attach(ctx context.Context, key pod.Key, io engine.IO) error {
	if _, err := e.readContainer(key); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &streams{io: io}
	s.io.Stdin = nil // no pipe of ours
	defer s.close()
	_, stdout, stderr, err := s.pipes()
	if err != nil {
		return fmt.Errorf("pipes for attach: %w", err)
	}
	session, err := e.opts.Keeper.Attach(ctx, &keeper.Attach{Key: string(key), Stdout: stdout, Stderr: stderr})
	closeAll(stdout, stderr)
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", key.Short(), err)
	}
	if err = e.attachInput(ctx, key, io, session.Stdin); err != nil {
		return errors.Join(err, session.Kill()) //nolint:contextcheck // it ends what outlives its context
	}
	s.start()
	if _, err = session.Wait(ctx); err != nil {
		detach := session.Kill() //nolint:contextcheck // it ends what outlives its context
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("attached to container %s: %w", key.Short(), errors.Join(err, detach))
	}
	return s.finish(ctx)
}

// attachInput passes on the client's input and terminal sizes until they or ctx end. The output's
// session got a way in as well: it is closed, or the container would never see the end of its input.
func (e *Engine) attachInput(ctx context.Context, key pod.Key, io engine.IO, unused *os.File) error {
	closeAll(unused)
	if io.Stdin == nil && io.Resize == nil {
		return nil
	}
	session, err := e.opts.Keeper.Attach(ctx, &keeper.Attach{Key: string(key)})
	if err != nil {
		return fmt.Errorf("attach to the input of container %s: %w", key.Short(), err)
	}
	s := &streams{io: engine.IO{Resize: io.Resize}, input: session.Stdin}
	s.start()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if io.Stdin != nil && s.input != nil {
			copyInput(s.input, io.Stdin)
		}
		if io.Resize != nil {
			<-ctx.Done()
		}
	}()
	go func() {
		select {
		case <-ended:
		case <-ctx.Done():
		}
		s.close()
		// An attach has nothing to kill: this closes its connection.
		_ = session.Kill() //nolint:contextcheck // it ends what outlives its context
	}()
	return nil
}
