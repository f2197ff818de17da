package keeper_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gantry/internal/keeper"
	"gantry/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// binary builds gantry-keeper once.
var binary = sync.OnceValues(func() (string, error) {
	path := "/run/gantry-keeper" // the lab's own, gone with it
	out, err := exec.Command("go", "build", "-o", path, "gantry/cmd/gantry-keeper").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// bench is a keeper with what its containers need.
type bench struct {
	*keeper.Client
	t     testing.TB
	state string
	dir   string
	log   string // of the last container
	crun  string // state directory of crun

	cgroup string // the keeper's; those of the containers are below another beside it
}

func newBench(t testing.TB) *bench {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatalf("build gantry-keeper: %v", err)
	}
	// Short, on a tmpfs as in production.
	dir, err := os.MkdirTemp("/run", "k")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, state: filepath.Join(dir, "state"), dir: t.TempDir(), crun: filepath.Join(dir, "crun"), cgroup: lab.Cgroup(t)}
	b.Client = b.connect(path)
	t.Cleanup(func() {
		if data, _ := os.ReadFile(filepath.Join(b.state, "keeper.log")); t.Failed() {
			t.Logf("keeper.log:\n%s", data)
		}
		b.end()
	})
	b.rootfs()
	return b
}

func (b *bench) connect(path string) *keeper.Client {
	b.t.Helper()
	c, err := keeper.Connect(context.Background(), keeper.Options{StateDir: b.state, Binary: path, CgroupPath: b.cgroup})
	if err != nil {
		data, _ := os.ReadFile(filepath.Join(b.state, "keeper.log"))
		b.t.Fatalf("connect: %v\n%s", err, data)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

// end removes the containers and the keeper.
func (b *bench) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	states, err := b.List(ctx)
	if err != nil {
		b.t.Errorf("list: %v", err)
	}
	for _, s := range states {
		if err := b.Delete(ctx, s.Key); err != nil {
			b.t.Errorf("delete: %v", err)
		}
	}
	if !b.t.Failed() { // an exec is forgotten after its client was told of its end
		var left []string
		defer func() {
			if len(left) > 0 {
				b.t.Logf("left behind: %v", left)
			}
		}()
		b.eventually("empty state directory", func() bool {
			left, _ = filepath.Glob(b.state + "/[cx]/*")
			return len(left) == 0
		})
	}
	b.killBoth()
	b.eventually("empty cgroup", b.removeCgroup)
}

// removeCgroup removes what the keeper and its containers were in; a killed process leaves it late.
func (b *bench) removeCgroup() bool {
	var dirs []string
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + b.cgroup + "*")
	for _, root := range roots {
		_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
	}
	gone := true
	for _, dir := range slices.Backward(dirs) {
		if !strings.Contains(dir, "/unified/") {
			gone = os.Remove(dir) == nil && gone
		}
	}
	return gone
}

func (b *bench) rootfs() {
	b.t.Helper()
	bin := filepath.Join(b.dir, "rootfs", "bin")
	for _, d := range []string{bin, filepath.Join(b.dir, "rootfs", "proc"), filepath.Join(b.dir, "rootfs", "dev"), b.shared()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "busybox"), data, 0o755); err != nil {
		b.t.Fatal(err)
	}
	for _, applet := range []string{"sh", "seq", "sleep", "cat", "stty", "dd", "printf", "tail", "mkdir"} {
		if err := os.Symlink("busybox", filepath.Join(bin, applet)); err != nil {
			b.t.Fatal(err)
		}
	}
}

// shared is a directory that containers see as /shared.
func (b *bench) shared() string { return filepath.Join(b.dir, "rootfs", "shared") }

// container is a request for a container that runs a shell script.
type container struct {
	keeper.Create
	script string
	args   []string // instead of script
	memory int64    // limit in bytes
	shared bool     // the PID namespace
}

// spec writes the container's bundle and returns the request.
func (b *bench) spec(key string, c container) *keeper.Create {
	b.t.Helper()
	c.Key = key
	if c.Runtime.Path == "" {
		c.Runtime = keeper.Runtime{Path: "/usr/bin/crun", Args: []string{"--root", b.crun}}
	}
	c.Bundle = filepath.Join(b.dir, key)
	c.CgroupPath = b.cgroup + "-containers/" + key
	if c.LogPath == "" {
		c.LogPath = filepath.Join(b.dir, key+".log")
	}
	b.log = c.LogPath
	args := c.args
	if args == nil {
		args = []string{"/bin/sh", "-c", c.script}
	}
	type object = map[string]any
	resources := object{}
	if c.memory > 0 {
		resources["memory"] = object{"limit": c.memory}
	}
	namespaces := []object{{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}}
	if !c.shared {
		namespaces = append(namespaces, object{"type": "pid"})
	}
	config := object{
		"ociVersion": "1.0.0",
		"root":       object{"path": filepath.Join(b.dir, "rootfs")},
		"process":    object{"args": args, "cwd": "/", "env": []string{"PATH=/bin"}, "terminal": c.TTY, "user": object{"uid": 0, "gid": 0}},
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
			{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666"}},
		},
		"linux": object{
			"cgroupsPath": c.CgroupPath,
			"resources":   resources,
			"namespaces":  namespaces,
		},
	}
	data, err := json.Marshal(config)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.MkdirAll(c.Bundle, 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.Bundle, "config.json"), data, 0o644); err != nil {
		b.t.Fatal(err)
	}
	return &c.Create
}

// run creates and starts a container.
func (b *bench) run(key string, c container) *keeper.Create {
	b.t.Helper()
	req := b.spec(key, c)
	if _, err := b.Create(b.context(), req); err != nil {
		b.t.Fatalf("create: %v", err)
	}
	if err := b.Start(b.context(), key); err != nil {
		b.t.Fatalf("start: %v", err)
	}
	return req
}

func (b *bench) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	b.t.Cleanup(cancel)
	return ctx
}

// state returns what List has of a container.
func (b *bench) stateOf(key string) *keeper.State {
	b.t.Helper()
	states, err := b.List(b.context())
	if err != nil {
		b.t.Fatalf("list: %v", err)
	}
	for _, s := range states {
		if s.Key == key {
			return &s
		}
	}
	return nil
}

// exit waits for a container's exit.
func (b *bench) exit(key string) keeper.Exit {
	b.t.Helper()
	var exit keeper.Exit
	b.eventually("exit of "+key, func() bool {
		s := b.stateOf(key)
		if s == nil || s.Exit == nil {
			return false
		}
		exit = *s.Exit
		return true
	})
	return exit
}

// eventually waits for what another process does.
func (b *bench) eventually(what string, ok func() bool) {
	b.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); !ok(); <-tick.C {
		if time.Now().After(end) {
			b.t.Fatalf("no %s in a minute", what)
		}
	}
}

// process is one of the keeper's.
type process struct{ pid, parent int }

// stands says that no thread of the process does anything; one may wait for a child that it forks.
func (p process) stands() bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.pid))
	for _, path := range threads {
		data, _ := os.ReadFile(path)
		_, state, found := strings.Cut(string(data), ") ")
		if found && state[0] != 'T' && state[0] != 'D' {
			return false
		}
	}
	return true
}

// keepers finds the bench's keeper processes whose arguments contain word.
func (b *bench) keepers(word string) []process {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var found []process
	for _, d := range dirs {
		line, err := os.ReadFile(d + "/cmdline")
		args := strings.Split(string(line), "\x00")
		if err != nil || len(args) < 3 || args[1] != "--state" || args[2] != b.state || !strings.Contains(string(line), word) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(d))
		data, err := os.ReadFile(d + "/stat")
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		if err != nil || fields[0] == "Z" {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		found = append(found, process{pid, parent})
	}
	return found
}

// signal sends a signal to the bench's keeper processes.
func (b *bench) signal(sig syscall.Signal) {
	for _, p := range b.keepers("") {
		_ = syscall.Kill(p.pid, sig)
	}
}

// stop stops all of the keeper. What was asked to stop does so when it runs the next time, and what it has forked before
// is not stopped with it.
func (b *bench) stop() {
	b.t.Helper()
	b.eventually("keeper that stands still", func() bool {
		b.signal(syscall.SIGSTOP)
		runs := func(p process) bool { return !p.stands() }
		for range 2 { // the first look may have come before one that ran then was there
			if slices.ContainsFunc(b.keepers(""), runs) {
				return false
			}
		}
		return true
	})
}

// killBoth kills holder and worker at one moment: either alone would start the other again.
func (b *bench) killBoth() {
	b.t.Helper()
	b.stop()
	b.signal(syscall.SIGKILL)
	b.eventually("end of the keeper", func() bool { return len(b.keepers("")) == 0 })
}

// worker is the pid of the worker; 0 when there is none at this moment. A child that it has just forked
// still looks like it, and does not count.
func (b *bench) worker() int {
	workers := b.keepers("--worker")
	for _, p := range workers {
		if !slices.ContainsFunc(workers, func(w process) bool { return w.pid == p.parent }) {
			return p.pid
		}
	}
	return 0
}

// holder is the pid of a holder that has its own worker.
func (b *bench) holder() int {
	workers := b.keepers("--worker")
	for _, p := range b.keepers("") {
		if !slices.Contains(workers, p) && slices.ContainsFunc(workers, func(w process) bool { return w.parent == p.pid }) {
			return p.pid
		}
	}
	return 0
}

// kill kills the process that find finds, once it is there, and waits until it is gone.
func (b *bench) kill(find func() int) {
	b.t.Helper()
	var pid int
	b.eventually("process to kill", func() bool { pid = find(); return pid > 0 })
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		b.t.Fatal(err)
	}
	b.eventually("end of the killed process", func() bool { return find() != pid })
}
