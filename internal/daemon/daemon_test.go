package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"gantry/internal/config"
	"gantry/internal/daemon"
	"gantry/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

var quiet = slog.New(slog.DiscardHandler)

// options are those of a server with nothing of the machine's in them.
func options(t *testing.T) *config.Options {
	t.Helper()
	dir := t.TempDir()
	o := config.Default()
	o.Root, o.State = filepath.Join(dir, "root"), filepath.Join(dir, "state")
	o.Listen = "unix://" + filepath.Join(o.State, "s")
	o.Network.Mode = "builtin"
	o.Network.NetNSDir = filepath.Join(dir, "netns")
	o.Runtime.Default, o.Runtime.Paths = "crun", map[string]string{"crun": filepath.Join(dir, "crun")}
	o.Keeper.Binary = filepath.Join(dir, "gantry-keeper")
	t.Cleanup(func() { _ = unix.Unmount(o.State, unix.MNT_DETACH) })
	return &o
}

// given loads options that never change.
func given(o *config.Options) daemon.Load { return func() (*config.Options, error) { return o, nil } }

func TestStateGetsATmpfs(t *testing.T) {
	dir := t.TempDir()
	lock, err := daemon.LockState(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	defer func() { _ = lock.Close() }()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Errorf("type %x, %v", st.Type, err)
	}
	if pid, err := os.ReadFile(filepath.Join(dir, daemon.LockName)); strings.TrimSpace(string(pid)) != strconv.Itoa(os.Getpid()) {
		t.Errorf("lock says %q, %v", pid, err)
	}
}

func TestStateOnTmpfsIsLeftAsItIs(t *testing.T) {
	dir, err := os.MkdirTemp("/run", "state") // the lab's own tmpfs
	if err != nil {
		t.Fatal(err)
	}
	lock, err := daemon.LockState(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err == nil {
		t.Error("something was mounted")
	}
}

func TestOnlyOneServerAState(t *testing.T) {
	dir := t.TempDir()
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	first, err := daemon.LockState(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	_, err = daemon.LockState(dir, quiet)
	if err == nil || !strings.Contains(err.Error(), "another server uses the state directory") || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("second server: %v", err)
	}
	if err = first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := daemon.LockState(dir, quiet)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	_ = again.Close()
}

func TestStartsAtTheSameMomentLetOneThrough(t *testing.T) {
	dir := t.TempDir()
	defer func() {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
	}()
	const servers = 8
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		have []*os.File
	)
	for range servers {
		wg.Go(func() {
			if f, err := daemon.LockState(dir, quiet); err == nil {
				mu.Lock()
				have = append(have, f)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(have) > 1 {
		t.Errorf("%d servers have the lock", len(have))
	}
	for _, f := range have {
		_ = f.Close()
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Errorf("nothing was mounted: %v", err)
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err == nil {
		t.Error("two were mounted, one over the other")
	}
}

func TestStaleSocket(t *testing.T) {
	dir := t.TempDir()
	ctx := t.Context()
	path := filepath.Join(dir, "s")
	if err := daemon.RemoveStaleSocket(ctx, path); err != nil {
		t.Errorf("none: %v", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	if err := daemon.RemoveStaleSocket(ctx, path); err == nil || !strings.Contains(err.Error(), "another server listens") {
		t.Errorf("one that answers: %v", err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if err := daemon.RemoveStaleSocket(ctx, path); err != nil {
		t.Errorf("stale: %v", err)
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := daemon.RemoveStaleSocket(ctx, path); err == nil {
		t.Error("a file that is no socket was removed")
	}
}

// A server is there also when it has no room for one client more, and when nobody has the time to ask it.
func TestSocketOfABusyServerIsLeft(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err = errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	var d net.Dialer
	for err == nil {
		var conn net.Conn
		if conn, err = d.DialContext(t.Context(), "unix", path); err == nil {
			defer func() { _ = conn.Close() }()
		}
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	if err = daemon.RemoveStaleSocket(t.Context(), path); err == nil || !strings.Contains(err.Error(), "another server listens") {
		t.Errorf("one that is busy: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err = daemon.RemoveStaleSocket(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("asked to end before it has asked: %v", err)
	}
	if _, err = os.Lstat(path); err != nil {
		t.Error(err)
	}
}

func TestRunRefuses(t *testing.T) {
	tests := map[string]struct {
		change func(*config.Options)
		want   string
	}{
		"no runtime":               {func(o *config.Options) { o.Runtime.Paths = nil }, "no OCI runtime"},
		"no keeper":                {func(o *config.Options) { o.Keeper.Binary = "" }, "gantry-keeper is neither beside"},
		"keeper that is not there": {func(*config.Options) {}, "start the keeper"},
		"root is a file": {func(o *config.Options) {
			if err := os.WriteFile(o.Root, nil, 0o600); err != nil {
				panic(err)
			}
		}, "make directory"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			tt.change(o)
			err := daemon.Run(t.Context(), given(o), io.Discard)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			// What it held is free again.
			if _, err = os.Stat(o.State); err != nil {
				return
			}
			lock, err := daemon.LockState(o.State, quiet)
			if err != nil {
				t.Fatalf("the lock was kept: %v", err)
			}
			_ = lock.Close()
		})
	}
}

func TestAskedToEndBeforeItBegan(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var log bytes.Buffer
	if err := daemon.Run(ctx, given(options(t)), &log); err != nil {
		t.Errorf("%v\n%s", err, log.String())
	}
}

func TestSystemdsSocketIsInheritedByNobody(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "notify"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := daemon.Run(ctx, given(options(t)), io.Discard); err != nil {
		t.Fatal(err)
	}
	if path, ok := os.LookupEnv("NOTIFY_SOCKET"); ok {
		t.Errorf("children would inherit %s", path)
	}
}
