package keeper_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/crilog"
	"gantry/internal/keeper"
)

// logged returns what a stream's entries of a log say together, and how many there are of each tag.
func logged(t *testing.T, path string, stream crilog.Stream) (content string, full, partial int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for line := range bytes.Lines(data) {
		e, err := crilog.Parse(line)
		if err != nil {
			t.Fatal(err)
		}
		if e.Stream != stream {
			continue
		}
		all = append(all, e.Content...)
		if e.Partial {
			partial++
		} else {
			full++
			all = append(all, '\n')
		}
	}
	return string(all), full, partial
}

func TestLog(t *testing.T) {
	b := newBench(t)
	long := strings.Repeat("x", 40_000)
	for name, tc := range map[string]struct {
		script, out, err string
		full, partial    int
	}{
		"streams are told apart":              {"echo one; echo two >&2", "one\n", "two\n", 1, 0},
		"a last line without newline is kept": {"printf 'one\\ntwo'", "one\ntwo", "", 1, 1},
		"a long line is cut into pieces":      {"printf '%s\\n' " + long, long + "\n", "", 1, 2},
		"bytes are not changed":               {"printf '\\000\\377\\r\\n'", "\x00\xff\r\n", "", 1, 0},
		"no output makes an empty log":        {"true", "", "", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			key := strings.ReplaceAll(name, " ", "-")
			req := b.run(key, container{script: tc.script})
			if e := b.exit(key); e.Code != 0 {
				t.Errorf("exit %+v", e)
			}
			out, full, partial := logged(t, req.LogPath, crilog.Stdout)
			if out != tc.out || full != tc.full || partial != tc.partial {
				t.Errorf("stdout %.100q, %d F, %d P; want %.100q, %d, %d", out, full, partial, tc.out, tc.full, tc.partial)
			}
			if got, _, _ := logged(t, req.LogPath, crilog.Stderr); got != tc.err {
				t.Errorf("stderr %q, want %q", got, tc.err)
			}
		})
	}
}

func TestLogThatIsALinkIsRefused(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(b.dir, "link")
	if err := os.Symlink("/etc/passwd", path); err != nil {
		t.Fatal(err)
	}
	c := container{script: "true"}
	c.LogPath = path
	if _, err := b.Create(b.context(), b.spec("c", c)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("create: %v", err)
	}
}

func TestRepeatedRequestsSucceed(t *testing.T) {
	b := newBench(t)
	ctx := b.context()
	req := b.spec("c", container{script: "while :; do sleep 1; done"})
	pid, err := b.Create(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := b.Create(ctx, req); err != nil || again != pid {
		t.Errorf("second create: pid %d, %v; want %d", again, err, pid)
	}
	if s := b.stateOf("c"); s.Phase != "created" || s.Pid != pid || s.CgroupPath != req.CgroupPath || s.Bundle != req.Bundle {
		t.Errorf("state %+v", s)
	}
	for range 2 {
		if err := b.Start(ctx, "c"); err != nil {
			t.Errorf("start: %v", err)
		}
	}
	if s := b.stateOf("c"); s.Phase != "running" {
		t.Errorf("state %+v", s)
	}
	for range 2 {
		if err := b.Delete(ctx, "c"); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if s := b.stateOf("c"); s != nil {
		t.Errorf("state after delete: %+v", s)
	}
	for what, err := range map[string]error{
		"start":  b.Start(ctx, "c"),
		"signal": b.Signal(ctx, "c", syscall.SIGTERM),
		"reopen": b.ReopenLog(ctx, "c"),
	} {
		if !errdefs.IsNotFound(err) {
			t.Errorf("%s of an absent container: %v", what, err)
		}
	}
}

func TestSignals(t *testing.T) {
	b := newBench(t)
	b.run("trap", container{script: `trap "exit 5" TERM; echo up; while :; do sleep 0.01; done`})
	b.eventually("handler", func() bool { out, _, _ := logged(t, b.log, crilog.Stdout); return out == "up\n" })
	if err := b.Signal(b.context(), "trap", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := b.exit("trap"); e.Code != 5 || time.Since(e.At) > time.Minute {
		t.Errorf("exit %+v, want 5", e)
	}
	if err := b.Signal(b.context(), "trap", syscall.SIGTERM); err != nil {
		t.Errorf("signal to what has ended: %v", err)
	}
	b.run("all", container{script: `sleep 1000 & wait`})
	if err := b.SignalAll(b.context(), "all", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := b.exit("all"); e.Code != 137 || e.OOMKilled {
		t.Errorf("exit %+v, want 137", e)
	}
}

func TestOOMKillIsReported(t *testing.T) {
	b := newBench(t)
	// tail keeps the last lines of its input in memory; /dev/zero is one endless line.
	b.run("hungry", container{script: `exec tail /dev/zero`, memory: 16 << 20})
	if e := b.exit("hungry"); e.Code != 137 || !e.OOMKilled {
		t.Errorf("exit %+v, want 137, OOMKilled", e)
	}
}

func TestOOMKillThatTheContainerSurvives(t *testing.T) {
	b := newBench(t)
	events, err := b.Watch(b.context())
	if err != nil {
		t.Fatal(err)
	}
	b.run("c", container{script: "tail /dev/zero; while ! [ -e /shared/go ]; do sleep 0.01; done", memory: 16 << 20})
	if e := <-events; e.Key != "c" || e.Exit != nil {
		t.Errorf("event %+v, want an OOM kill that is no exit", e)
	}
	b.touch("go")
	if e := <-events; e.Exit == nil || e.Exit.Code != 0 || e.Exit.OOMKilled {
		t.Errorf("event %+v, want a plain exit", e)
	}
}

func TestWatch(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(b.context())
	events, err := b.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b.run("c", container{script: "exit 3"})
	if e := <-events; e.Key != "c" || e.Exit == nil || e.Exit.Code != 3 {
		t.Errorf("event %+v", e)
	}
	lost, err := b.Watch(b.context())
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	for range events { // ends
	}
	b.kill(b.worker)
	for range lost { // ends with the worker
	}
	if s := b.stateOf("c"); s == nil || s.Exit == nil || s.Exit.Code != 3 {
		t.Errorf("state after a new worker: %+v", s)
	}
}

func TestBackgroundChildDelaysNothing(t *testing.T) {
	b := newBench(t)
	req := b.run("c", container{shared: true, script: `
		(while ! [ -e /shared/go ]; do sleep 0.01; done; echo late) &
		echo early; exit 4`})
	if e := b.exit("c"); e.Code != 4 {
		t.Errorf("exit %+v, want 4", e)
	}
	if out, _, _ := logged(t, req.LogPath, crilog.Stdout); out != "early\n" {
		t.Errorf("log at the exit: %q", out)
	}
	if err := os.WriteFile(filepath.Join(b.shared(), "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	b.eventually("late output", func() bool {
		out, _, _ := logged(t, req.LogPath, crilog.Stdout)
		return out == "early\nlate\n"
	})
}

func TestReopenAtFullSpeed(t *testing.T) {
	b := newBench(t)
	check := &checker{t: t}
	req := b.run("writer", container{script: numbers})
	var logs []string
	for i := range 20 {
		b.eventually("output in the log", func() bool {
			info, err := os.Stat(req.LogPath)
			return err == nil && info.Size() > 0
		})
		old := fmt.Sprintf("%s.%d", req.LogPath, i)
		if err := os.Rename(req.LogPath, old); err != nil {
			t.Fatal(err)
		}
		if err := b.ReopenLog(b.context(), "writer"); err != nil {
			t.Fatal(err)
		}
		logs = append(logs, old)
	}
	if err := os.WriteFile(filepath.Join(b.shared(), "stop"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	b.exit("writer")
	// Checked at the end: a check slower than the writer would let each log be longer than the last.
	for _, path := range append(logs, req.LogPath) {
		check.file(path)
	}
	if check.next == 0 || check.next%20000 != 0 {
		t.Errorf("the log ends after line %d", check.next)
	}
}

func TestFailedCreateSaysWhyAndLeavesNothing(t *testing.T) {
	b := newBench(t)
	for name, tc := range map[string]struct {
		c     container
		says  string
		class func(error) bool
	}{
		"a command that is not there": {
			container{args: []string{"/no/such/command"}}, "/no/such/command", errdefs.IsUnknown},
		"a runtime that is not there": {
			container{script: "true", Create: keeper.Create{Runtime: keeper.Runtime{Path: "/no/such/runtime"}}}, "/no/such/runtime", errdefs.IsNotFound},
		"a log directory that is not there": {
			container{script: "true", Create: keeper.Create{LogPath: "/no/such/directory/log"}}, "/no/such/directory", errdefs.IsNotFound},
		"a command that is not there, with a terminal": {
			container{args: []string{"/no/such/command"}, Create: keeper.Create{TTY: true}}, "/no/such/command", errdefs.IsUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			req := b.spec("c", tc.c)
			_, err := b.Create(b.context(), req)
			if err == nil || !tc.class(err) || !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("create: %v", err)
			}
			t.Log(err)
			if states, err := b.List(b.context()); err != nil || len(states) > 0 {
				t.Errorf("list: %v, %v", states, err)
			}
			left, _ := filepath.Glob(b.state + "/[cx]/*")
			cgroups, _ := filepath.Glob("/sys/fs/cgroup/[^u]*" + req.CgroupPath + "/cgroup.procs")
			runtime, _ := filepath.Glob(b.crun + "/*")
			if left = append(append(left, cgroups...), runtime...); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if _, err := os.Stat(req.LogPath); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the log: %v", err)
			}
		})
	}
}

// TestDeleteWithoutTheRuntime: a runtime that is not there must not look like a container that is not.
func TestDeleteWithoutTheRuntime(t *testing.T) {
	b := newBench(t)
	runtime := filepath.Join(b.dir, "runtime")
	if err := os.Symlink("/usr/bin/crun", runtime); err != nil {
		t.Fatal(err)
	}
	b.run("c", container{script: "exec sleep 1000", Create: keeper.Create{Runtime: keeper.Runtime{Path: runtime, Args: []string{"--root", b.crun}}}})
	if err := os.Remove(runtime); err != nil {
		t.Fatal(err)
	}
	ask := &keeper.Exec{Key: "c", Process: []byte(`{"args":["/bin/sh"],"cwd":"/"}`)}
	if _, err := b.Exec(b.context(), ask); !errdefs.IsUnavailable(err) || strings.Count(err.Error(), "exec in container") != 1 {
		t.Errorf("exec: %v, want unavailable, and once what it was", err)
	}
	if err := b.Delete(b.context(), "c"); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), runtime) {
		t.Errorf("delete: %v, want unavailable", err)
	}
	if s := b.stateOf("c"); s == nil || s.Phase != "running" {
		t.Errorf("state %+v, want that it runs", s)
	}
	if err := os.Symlink("/usr/bin/crun", runtime); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(b.context(), "c"); err != nil {
		t.Errorf("delete with the runtime: %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	b := newBench(t)
	good := b.spec("c", container{script: "true"})
	for name, change := range map[string]func(*keeper.Create){
		"a key that is a path":      func(c *keeper.Create) { c.Key = "../c" },
		"a key that is an option":   func(c *keeper.Create) { c.Key = "--force" },
		"an empty key":              func(c *keeper.Create) { c.Key = "" },
		"no runtime":                func(c *keeper.Create) { c.Runtime.Path = "" },
		"a bundle that is relative": func(c *keeper.Create) { c.Bundle = "bundle" },
		"a log that is relative":    func(c *keeper.Create) { c.LogPath = "log" },
	} {
		t.Run(name, func(t *testing.T) {
			req := *good
			change(&req)
			if _, err := b.Create(b.context(), &req); !errdefs.IsInvalidArgument(err) {
				t.Errorf("create: %v", err)
			}
		})
	}
	missing := *good
	missing.Bundle = "/no/such/bundle"
	if _, err := b.Create(b.context(), &missing); !errdefs.IsNotFound(err) {
		t.Errorf("create without a bundle: %v", err)
	}
}

// slow returns a runtime whose create waits until something is written to gate.
func (b *bench) slow() (runtime keeper.Runtime, gate string) {
	b.t.Helper()
	gate, path := filepath.Join(b.dir, "gate"), filepath.Join(b.dir, "slow-crun")
	if err := syscall.Mkfifo(gate, 0o600); err != nil {
		b.t.Fatal(err)
	}
	script := "#!/bin/sh\ncase \"$*\" in *create*) read x < " + gate + ";; esac\nexec /usr/bin/crun --root " + b.crun + " \"$@\"\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		b.t.Fatal(err)
	}
	return keeper.Runtime{Path: path}, gate
}

func TestHalfMadeContainerIsDeleted(t *testing.T) {
	b := newBench(t)
	c := container{script: "true"}
	c.Runtime, _ = b.slow()
	req := b.spec("half", c)
	ctx, cancel := context.WithCancel(b.context())
	created := make(chan error, 1)
	go func() {
		_, err := b.Create(ctx, req)
		created <- err
	}()
	b.eventually("OCI runtime", func() bool { return processRuns(req.Bundle) })
	cancel()
	if err := <-created; !errors.Is(err, context.Canceled) {
		t.Errorf("create: %v", err)
	}
	b.kill(b.worker)
	if s := b.stateOf("half"); s == nil || s.Phase != "creating" {
		t.Errorf("state %+v", s)
	}
	if err := b.Delete(b.context(), "half"); err != nil {
		t.Fatal(err)
	}
	if processRuns(req.Bundle) {
		t.Error("the OCI runtime still runs")
	}
	if _, err := os.Stat(req.LogPath); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the log: %v", err)
	}
}

func TestDeleteEndsACreateThatHangs(t *testing.T) {
	b := newBench(t)
	c := container{script: "true"}
	c.Runtime, _ = b.slow()
	req := b.spec("stuck", c)
	created := make(chan error, 1)
	go func() {
		_, err := b.Create(b.context(), req)
		created <- err
	}()
	b.eventually("OCI runtime", func() bool { return processRuns(req.Bundle) })
	ctx, cancel := context.WithTimeout(b.context(), time.Minute)
	defer cancel()
	if err := b.Delete(ctx, "stuck"); err != nil {
		t.Fatalf("delete: %v", err)
	}
	if err := <-created; !errdefs.IsAborted(err) {
		t.Errorf("create: %v, want aborted", err)
	}
	if processRuns(req.Bundle) {
		t.Error("the OCI runtime still runs")
	}
}

func TestSlowRuntimeDelaysNoOther(t *testing.T) {
	b := newBench(t)
	c := container{script: "true"}
	var gate string
	c.Runtime, gate = b.slow()
	req := b.spec("slow", c)
	created := make(chan error, 1)
	go func() {
		_, err := b.Create(b.context(), req)
		created <- err
	}()
	b.eventually("the slow create", func() bool { s := b.stateOf("slow"); return s != nil && s.Phase == "creating" })
	b.run("quick", container{script: "exit 0"})
	if e := b.exit("quick"); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	if err := os.WriteFile(gate, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-created; err != nil {
		t.Errorf("slow create: %v", err)
	}
}

func TestLogThatIsNoRegularFileIsRefused(t *testing.T) {
	b := newBench(t)
	c := container{script: "true"}
	c.LogPath = filepath.Join(b.dir, "fifo")
	if err := syscall.Mkfifo(c.LogPath, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(b.context(), b.spec("c", c)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("create with a FIFO for a log that nobody reads: %v", err)
	}
	reader, err := os.OpenFile(c.LogPath, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	if _, err := b.Create(b.context(), b.spec("c", c)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("create with a FIFO for a log that somebody reads: %v", err)
	}
}

// TestFullDiskDelaysNoDelete: the disk of the logs is full, a rotation waits for it, and what would
// make room is the removal of the container.
func TestFullDiskDelaysNoDelete(t *testing.T) {
	b := newBench(t)
	disk := filepath.Join(b.dir, "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("disk", disk, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(disk, syscall.MNT_DETACH) })
	c := container{script: numbers}
	c.LogPath = filepath.Join(disk, "log")
	b.run("writer", c)
	b.eventually("full disk", func() bool {
		data, _ := os.ReadFile(filepath.Join(b.state, "keeper.log"))
		return strings.Contains(string(data), "output waits")
	})
	ctx, cancel := context.WithTimeout(b.context(), 100*time.Millisecond)
	defer cancel()
	if err := b.ReopenLog(ctx, "writer"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("reopen on a full disk: %v, want that it waits", err)
	}
	ctx, cancel = context.WithTimeout(b.context(), time.Minute)
	defer cancel()
	if err := b.Delete(ctx, "writer"); err != nil {
		t.Errorf("delete: %v", err)
	}
}
