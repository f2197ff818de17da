package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	// lingering is how long output is waited for after a plugin has ended: a child that it left
	// behind may hold the pipe for ever.
	lingering = time.Second
	// busyRetry and busyTries bound the wait for a plugin that is just being installed (ETXTBSY).
	busyRetry = 100 * time.Millisecond
	busyTries = 20
)

// processes runs plugins as processes, each in a process group of its own, so that one that takes
// too long is killed together with the plugins and commands that it runs.
type processes struct {
	version.PluginDecoder
	log *slog.Logger
}

// NewExec returns the way plugins are run as processes. When the context ends a plugin is killed
// with its whole process group; the error names plugin, verb and time.
func NewExec(log *slog.Logger) invoke.Exec { return &processes{log: log} }

func (p *processes) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

func (p *processes) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	for tries := 1; ; tries++ {
		out, err := p.run(ctx, path, stdin, environ)
		if !errors.Is(err, syscall.ETXTBSY) || tries == busyTries {
			return out, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(busyRetry):
		}
	}
}

func (p *processes) run(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	stdout, toStdout, err := newOutput()
	if err != nil {
		return nil, err
	}
	stderr, toStderr, err := newOutput()
	if err != nil {
		_ = toStdout.Close()
		stdout.end(0)
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = environ
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), toStdout, toStderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = lingering // for one that was left behind and holds the input

	// A plugin must not go on adding beside the DEL that a restarted server sends; the parent that
	// Pdeathsig means is a thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := time.Now()
	err = cmd.Start()
	_, _ = toStdout.Close(), toStderr.Close()
	if err == nil {
		err = cmd.Wait()
	}
	name, verb := filepath.Base(path), variable(environ, "CNI_COMMAND")
	result, held := stdout.end(lingering)
	said, _ := stderr.end(0)
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, fmt.Errorf("%s %s was killed after %s: %w", name, verb,
			time.Since(began).Round(time.Millisecond), context.Cause(ctx))
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return nil, pluginError(err, result, said)
	case held:
		p.log.Warn("a plugin left a process behind that holds its output", "plugin", name, "verb", verb)
	}
	if len(said) > 0 {
		p.log.Debug("plugin wrote", "plugin", name, "verb", verb, "stderr", strings.TrimSpace(string(said)))
	}
	return result, nil
}

// pluginError is what the plugin printed, by the specification an error in JSON. What a plugin could
// not do now it may do later: it is unavailable.
func pluginError(err error, stdout, stderr []byte) error {
	var said types.Error
	if json.Unmarshal(stdout, &said) == nil && said.Msg != "" {
		return fmt.Errorf("%w: %w", &said, errdefs.ErrUnavailable)
	}
	text := strings.TrimSpace(string(stdout) + "\n" + string(stderr))
	if text == "" {
		return fmt.Errorf("%w, without a message: %w", err, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%w: %s: %w", err, text, errdefs.ErrUnavailable)
}

// variable is the value of an environment variable; the last one counts.
func variable(environ []string, name string) (value string) {
	for _, e := range environ {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			value = v
		}
	}
	return value
}
