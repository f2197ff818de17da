// Package dockerlog brings the output of containers that dockerd runs into CRI log files. There are two
// ways. Where dockerd can reach it, gantry-keeper is a log driver of dockerd's: output goes on being
// written while the server restarts, and the container waits where it cannot be. Else the server follows
// Docker's API from what it wrote last: nothing is lost or written twice as long as dockerd keeps it, but
// nothing is written while the server does not run.
package dockerlog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"gantry/internal/keeper"
	"gantry/internal/pod"
)

// pluginDir is where every dockerd looks for plugins.
const pluginDir = "/run/docker/plugins"

// Driver is the name under which dockerd knows the log driver of the keeper in stateDir: one of the
// default directory is "gantry", so that people know it again.
func Driver(stateDir string) string {
	if filepath.Clean(stateDir) == "/run/gantry" {
		return "gantry"
	}
	sum := sha256.Sum256([]byte(filepath.Clean(stateDir)))
	return "gantry-" + hex.EncodeToString(sum[:4])
}

// Keeper is what is used of gantry-keeper.
type Keeper interface {
	OpenLog(ctx context.Context, l *keeper.Log) error
	ReopenLog(ctx context.Context, key string) error
	CloseLog(ctx context.Context, key string) error
}

// API is what is used of Docker's.
type API interface {
	DaemonHost() string
	ContainerInspect(ctx context.Context, id string, o client.ContainerInspectOptions) (client.ContainerInspectResult, error)
	ContainerLogs(ctx context.Context, id string, o client.ContainerLogsOptions) (client.ContainerLogsResult, error)
}

// Options are what logs are made of.
type Options struct {
	Keeper Keeper
	API    API
	Driver string // see Driver
	// StateDir holds a record for each container that is followed, made if it is missing.
	StateDir string
	// Follow has all logs come through the API.
	Follow bool
	Log    *slog.Logger // nil: slog.Default()
}

// Logs are the logs of the containers of one Docker Engine.
type Logs struct {
	opts Options

	mu        sync.Mutex
	followers map[pod.Key]*follower // guarded by mu
}

// New returns the logs. Shutdown ends following.
func New(o Options) (*Logs, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("directory of docker's logs: %w", err)
	}
	return &Logs{opts: o, followers: make(map[pod.Key]*follower)}, nil
}

// followed are the driver and its options of a container that is followed. Its logs are those of the CRI:
// dockerd need keep them only as long as the server may not run. (The driver "local" of 20.10 forgets the
// end of a line that was cut to pieces.)
func followed() (driver string, options map[string]string) {
	return "json-file", map[string]string{"max-size": "100m", "max-file": "2"}
}

// Config says how dockerd is to log a container that is about to be created, and opens its log.
func (l *Logs) Config(ctx context.Context, key pod.Key, path string, b *pod.LogBounds) (driver string, options map[string]string, err error) {
	if path == "" {
		return "none", nil, nil
	}
	if !l.opts.Follow {
		err := l.opts.Keeper.OpenLog(ctx, &keeper.Log{Key: string(key), LogPath: path, Socket: l.socket(), Bounds: keeper.BoundsOf(b)})
		if err != nil {
			return "", nil, err
		}
		if l.reachable() {
			return l.opts.Driver, map[string]string{keeper.LogKeyOption: string(key), "mode": "blocking"}, nil
		}
		if err := l.opts.Keeper.CloseLog(ctx, string(key)); err != nil {
			return "", nil, err
		}
	}
	// No disk holds output up that follows: dockerd keeps it as long as the log can't be written.
	if of := keeper.BoundsOf(b); of.Rate > 0 || of.Size > 0 {
		return "", nil, fmt.Errorf("log bounds: a log that follows Docker's API has neither a rate nor a size"+
			" (gantry/log-rate, gantry/log-size, container_logs): %w", errdefs.ErrNotImplemented)
	}
	if err := l.prepare(key, path); err != nil {
		return "", nil, err
	}
	driver, options = followed()
	return driver, options, nil
}

// Follow is told Docker's id of a container that is about to start, or that was found.
func (l *Logs) Follow(_ context.Context, key pod.Key, id string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.followers[key] != nil {
		return nil
	}
	f, err := l.open(key, id)
	if err != nil || f == nil {
		return err
	}
	l.followers[key] = f
	go f.run()
	return nil
}

// Reopen goes on in the file that now has the log's path.
func (l *Logs) Reopen(ctx context.Context, key pod.Key) error {
	l.mu.Lock()
	f := l.followers[key]
	l.mu.Unlock()
	if f != nil {
		return f.reopen()
	}
	err := l.opts.Keeper.ReopenLog(ctx, string(key))
	if errdefs.IsNotFound(err) && l.isFollowed(key) {
		return nil // it has not started; the file is opened when it does
	}
	return err
}

// Close forgets a container that was removed; its file stays.
func (l *Logs) Close(ctx context.Context, key pod.Key) error {
	l.mu.Lock()
	f := l.followers[key]
	delete(l.followers, key)
	l.mu.Unlock()
	if f != nil {
		f.stop()
	}
	if err := os.Remove(l.record(key)); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("forget log: %w", err)
	}
	return l.opts.Keeper.CloseLog(ctx, string(key))
}

// Shutdown ends following, which goes on after the next Follow.
func (l *Logs) Shutdown() {
	l.mu.Lock()
	all := l.followers
	l.followers = make(map[pod.Key]*follower)
	l.mu.Unlock()
	for _, f := range all {
		f.stop()
	}
}

func (l *Logs) socket() string { return filepath.Join(pluginDir, l.opts.Driver+".sock") }

// reachable says whether dockerd sees the driver's socket: it may live in other namespaces, and then it
// has a directory of its own at that path.
func (l *Logs) reachable() bool {
	u, err := url.Parse(l.opts.API.DaemonHost())
	if err != nil || u.Scheme != "unix" {
		return false
	}
	pid, err := peer(u.Path)
	if err != nil {
		l.opts.Log.Warn("docker's mounts cannot be looked at: logs follow its API", "error", err)
		return false
	}
	ours, err := os.Stat(l.socket())
	if err != nil {
		return false
	}
	theirs, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid), "root", l.socket()))
	if err != nil || !os.SameFile(ours, theirs) {
		l.opts.Log.Debug("docker does not see the log driver: logs follow its API", "socket", l.socket())
		return false
	}
	return true
}

// peer is the process that listens at a unix socket. With socket activation it is the service manager,
// which has the same mounts unless its unit says otherwise.
func peer(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return 0, fmt.Errorf("connect to %s: %w", path, err)
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, fmt.Errorf("who listens at %s: %w", path, err)
	}
	return int(cred.Pid), nil
}

func (l *Logs) record(key pod.Key) string {
	return filepath.Join(l.opts.StateDir, strings.ReplaceAll(string(key), "/", "_")+".json")
}

func (l *Logs) isFollowed(key pod.Key) bool {
	_, err := os.Stat(l.record(key))
	return err == nil
}
