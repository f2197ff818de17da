package fake

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// The words that a container or an exec can run. The first argument says which:
//
//	exit N         ends at once with code N
//	echo OUT ERR   writes OUT to standard output and ERR to standard error, ends with 0
//	cat            copies standard input to standard output until it ends, then ends with 0
//	trap SIG N     runs until SIG comes, then ends with code N
//	ignore SIG     runs and ignores SIG
//	fork           runs, with a child that outlives it where the PID namespace is shared
//	undead         runs, and no signal and no removal ends it: only Exit does
//	sleep          runs; any other word does too
//
// A signal that is not trapped or ignored ends the process with 128 plus its number.

const sigkill = 9

var signals = map[string]int{"HUP": 1, "INT": 2, "QUIT": 3, "KILL": sigkill, "USR1": 10, "USR2": 12, "TERM": 15, "WINCH": 28}

func signalNumber(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
		return n, nil
	}
	if n, ok := signals[strings.TrimPrefix(name, "SIG")]; ok {
		return n, nil
	}
	return 0, fmt.Errorf("signal %q: %w", name, errdefs.ErrInvalidArgument)
}

// words are what the container runs.
func (c *container) words() []string {
	w := slices.Concat(c.spec.Command, c.spec.Args)
	if len(w) == 0 {
		return []string{"sleep"}
	}
	return w
}

// begin ends at once a container whose word does so. e.mu is held.
func (e *Engine) begin(c *container) {
	switch w := c.words(); w[0] {
	case "exit":
		e.end(c, atoi(w[1]))
	case "echo":
		e.end(c, 0)
	}
}

// signal delivers a signal to a container's process. e.mu is held.
func (e *Engine) signal(c *container, number int) {
	w := c.words()
	if w[0] == "undead" {
		return
	}
	if number != sigkill && len(w) > 1 {
		named, _ := signalNumber(w[1])
		switch {
		case w[0] == "trap" && named == number:
			e.end(c, atoi(w[2]))
			return
		case w[0] == "ignore" && named == number:
			return
		}
	}
	e.end(c, int32(128+number))
}

// end is the end of a container's process with a code. e.mu is held.
func (e *Engine) end(c *container, code int32) { e.finish(c, pod.Exit{Code: code}) }

// Exit ends a running container with a code, as if its process did.
func (e *Engine) Exit(key pod.Key, code int32) { e.finishKey(key, pod.Exit{Code: code}) }

// OOMKill ends a running container as the kernel does when it is out of memory.
func (e *Engine) OOMKill(key pod.Key) {
	e.finishKey(key, pod.Exit{Code: 128 + sigkill, OOMKilled: true})
}

func (e *Engine) finishKey(key pod.Key, exit pod.Exit) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.containers[key]; c != nil && c.state == pod.ContainerRunning {
		e.finish(c, exit)
	}
}

// finish ends a container that has not ended, and tells every watcher. e.mu is held.
func (e *Engine) finish(c *container, exit pod.Exit) {
	if c.state == pod.ContainerExited {
		return
	}
	exit.At = time.Now()
	c.state, c.exit = pod.ContainerExited, &exit
	if ns := c.spec.Namespaces.PID; c.words()[0] == "fork" && ns != pod.NamespaceContainer && ns != "" {
		c.orphans = 1
	}
	close(c.ended)
	e.report(c)
}

// Vanish forgets everything, as a machine does that starts again.
func (e *Engine) Vanish() {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.sandboxes)
	clear(e.containers)
}

// Exec implements engine.Streams.
func (e *Engine) Exec(ctx context.Context, key pod.Key, req *engine.Exec) (int32, error) {
	c, err := call(ctx, e, "Exec", func() (*container, error) {
		c := e.containers[key]
		if c == nil {
			return nil, notFound("container", key)
		}
		if c.state != pod.ContainerRunning {
			return nil, fmt.Errorf("container %s is %s: %w", key.Short(), c.state, errdefs.ErrFailedPrecondition)
		}
		c.execs++
		return c, nil
	})
	if err != nil {
		return 0, err
	}
	defer func() {
		e.mu.Lock()
		c.execs--
		e.mu.Unlock()
	}()
	return run(ctx, c, req)
}

func run(ctx context.Context, c *container, req *engine.Exec) (int32, error) {
	if len(req.Args) == 0 {
		return 0, fmt.Errorf("exec without a command: %w", errdefs.ErrInvalidArgument)
	}
	switch w := req.Args; w[0] {
	case "exit":
		return atoi(w[1]), nil
	case "echo":
		errTo := req.IO.Stderr
		if req.TTY {
			errTo = req.IO.Stdout
		}
		return 0, write(req.IO.Stdout, w[1], errTo, w[2])
	case "cat":
		return 0, copyUntil(ctx, c.ended, req.IO)
	}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-c.ended:
		return 128 + sigkill, nil
	}
}

// Attach implements engine.Streams.
func (e *Engine) Attach(ctx context.Context, key pod.Key, s engine.IO) error {
	c, err := call(ctx, e, "Attach", func() (*container, error) {
		c := e.containers[key]
		if c == nil {
			return nil, notFound("container", key)
		}
		return c, nil
	})
	if err != nil {
		return err
	}
	if c.words()[0] == "cat" && s.Stdin != nil {
		return copyUntil(ctx, c.ended, s)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ended:
		return nil
	}
}

func write(out io.Writer, o string, errOut io.Writer, e string) error {
	for _, w := range []struct {
		to   io.Writer
		text string
	}{{out, o}, {errOut, e}} {
		if w.to == nil {
			continue
		}
		if _, err := io.WriteString(w.to, w.text); err != nil {
			return err
		}
	}
	return nil
}

// copyUntil is cat: it ends with its input, with the container or with ctx.
func copyUntil(ctx context.Context, ended <-chan struct{}, s engine.IO) error {
	if s.Stdin == nil || s.Stdout == nil {
		return nil
	}
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(s.Stdout, s.Stdin)
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func atoi(s string) int32 {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil {
		panic(fmt.Sprintf("fake: %q is no exit code", s))
	}
	return int32(n)
}
