package ociruntime_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gantry/internal/ociruntime"
)

func TestWhatIsMissingForCheckpointsIsNamed(t *testing.T) {
	there := func(string) (string, error) { return "/usr/sbin/criu", nil }
	absent := func(name string) (string, error) { return "", &exec.Error{Name: name, Err: exec.ErrNotFound} }
	for rule, c := range map[string]struct {
		script string
		look   func(string) (string, error)
		want   string // part of it; "" is nothing missing
	}{
		"crun built without CRIU":        {`echo "crun version 1.8.1"; echo "+SYSTEMD +SECCOMP"`, there, "without checkpoints"},
		"crun built with CRIU":           {`echo "crun version 1.8.1"; echo "+SYSTEMD +CRIU"`, there, ""},
		"crun without the program":       {`echo "crun version 1.8.1"; echo "+SYSTEMD +CRIU"`, absent, "criu"},
		"runc":                           {`echo "runc version 1.1.5"`, there, ""},
		"runc without the program":       {`echo "runc version 1.1.5"`, absent, "criu"},
		"gVisor, which needs no program": {`echo "runsc version release-20260101"`, absent, ""},
		"a runtime nobody knows":         {`echo "other version 1"`, there, "without checkpoints"},
		"features say no":                {`case $1 in features) echo '{"annotations":{"org.opencontainers.runc.checkpoint.enabled":"false"}}';; *) echo "runc version 1.5.2";; esac`, there, "without checkpoints"},
		"features say yes":               {`case $1 in features) echo '{"annotations":{"run.oci.crun.checkpoint.enabled":"true"}}';; *) echo "crun version 1.20";; esac`, there, ""},
	} {
		t.Run(rule, func(t *testing.T) {
			f, err := ociruntime.Probe(t.Context(), program(t, c.script))
			if err != nil {
				t.Fatal(err)
			}
			if gap := f.CheckpointGap(c.look); (gap == "") != (c.want == "") || !strings.Contains(gap, c.want) {
				t.Errorf("missing is %q, want %q", gap, c.want)
			}
		})
	}
}

func TestCheckpointSaysWhatCRIUSays(t *testing.T) {
	work := t.TempDir()
	r := ociruntime.Runtime{Path: program(t, `echo "$@" >`+work+`/args
echo "(00.1) Error (criu/mount.c:7): no such mount" >`+work+`/dump.log; echo failed >&2; exit 1`), Args: []string{"--root", "/r"}}
	err := ociruntime.Checkpoint(t.Context(), r, "id", "/images", work)
	if err == nil || !strings.Contains(err.Error(), "criu/mount.c:7") || !strings.Contains(err.Error(), "failed") {
		t.Errorf("%v; want what the runtime and CRIU say", err)
	}
	args, _ := os.ReadFile(filepath.Join(work, "args"))
	if want := "--root /r checkpoint --image-path /images --work-path " + work + " --leave-running id\n"; string(args) != want {
		t.Errorf("called with %q, want %q", args, want)
	}
}

// A runtime that hangs is ended with what it runs when time is up.
func TestCommandsEndWithTheirContext(t *testing.T) {
	for name, give := range map[string]func(ctx context.Context, r ociruntime.Runtime, dir string) error{
		"checkpoint": func(ctx context.Context, r ociruntime.Runtime, dir string) error {
			return ociruntime.Checkpoint(ctx, r, "id", dir, dir)
		},
		"update": func(ctx context.Context, r ociruntime.Runtime, _ string) error {
			return ociruntime.Update(ctx, r, "id", []byte("{}"))
		},
		"state": func(ctx context.Context, r ociruntime.Runtime, _ string) error {
			_, err := ociruntime.Status(ctx, r, "id")
			return err
		},
		"version": func(ctx context.Context, r ociruntime.Runtime, _ string) error {
			_, err := ociruntime.Probe(ctx, r.Path)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			pidFile := filepath.Join(dir, "pid")
			r := ociruntime.Runtime{Path: program(t, "sleep 1000003 & echo $! >"+pidFile+"; wait")}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- give(ctx, r, dir) }()
			var said string
			until(t, "its helper runs", func() bool {
				data, _ := os.ReadFile(pidFile)
				said = string(data)
				return strings.HasSuffix(said, "\n")
			})
			cancel()
			if err := <-ended; err == nil {
				t.Error("it succeeded")
			}
			line := filepath.Join("/proc", strings.TrimSpace(said), "cmdline")
			until(t, "its helper ends with it", func() bool {
				cmd, _ := os.ReadFile(line)
				return len(cmd) == 0
			})
		})
	}
}

func TestCheckpointTellsWhyItIsBrokenOff(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	over := errors.New("time is up")
	cancel(over)
	dir := t.TempDir()
	if err := ociruntime.Checkpoint(ctx, ociruntime.Runtime{Path: program(t, "exit 0")}, "id", dir, dir); !errors.Is(err, over) {
		t.Errorf("%v, want the context's cause", err)
	}
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); !holds(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not so within a minute: %s", what)
		}
	}
}

func TestSettleWaitsAndThenKills(t *testing.T) {
	path := filepath.Join(t.TempDir(), "images")
	if err := ociruntime.Settle(t.Context(), path, 0); err != nil {
		t.Errorf("without a process: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "sleep 1000004; exit", "runtime", path) // it has path as long as it runs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := ociruntime.Settle(t.Context(), path, 100*time.Millisecond); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("it ended by itself")
	}
}
