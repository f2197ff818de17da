package keeper_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gantry/internal/crilog"
	"gantry/internal/keeper"
	"gantry/internal/ociruntime"
)

// onlyCreates is a crun that starts and deletes nothing.
func (b *bench) onlyCreates() keeper.Runtime {
	b.t.Helper()
	path := filepath.Join(b.dir, "only-creates")
	script := "#!/bin/sh\ncase \" $* \" in *\" start \"*|*\" delete \"*) echo not wanted; exit 1;; esac\nexec /usr/bin/crun \"$@\"\n"
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		b.t.Fatal(err)
	}
	return keeper.Runtime{Path: path, Args: []string{"--root", b.crun}}
}

func TestStartAndDeleteWithoutAProcessOfTheRuntime(t *testing.T) {
	for mode, tty := range map[string]bool{"pipes": false, "terminal": true} {
		t.Run(mode, func(t *testing.T) {
			b := newBench(t)
			c := container{script: "echo hello; " + waitAndExit}
			c.TTY, c.Runtime, c.DirectStart, c.DirectDelete = tty, b.onlyCreates(), true, true
			req := b.spec("c", c)
			if _, err := b.Create(b.context(), req); err != nil {
				t.Fatal(err)
			}
			if said := b.crunSays("c"); said != "created" {
				t.Errorf("crun calls it %q before its start", said)
			}
			if err := b.Start(b.context(), "c"); err != nil {
				t.Fatal(err)
			}
			if said := b.crunSays("c"); said != "running" {
				t.Errorf("crun calls it %q after its start", said)
			}
			s, _ := b.exec("c", "exit 3", nil)
			if e, err := s.Wait(b.context()); err != nil || e.Code != 3 {
				t.Errorf("exec: %+v, %v", e, err)
			}
			b.touch("go")
			if e := b.exit("c"); e.Code != 9 {
				t.Errorf("exit %+v, want 9", e)
			}
			if out, _, _ := logged(t, req.LogPath, crilog.Stdout); strings.ReplaceAll(out, "\r", "") != "hello\nup\ndown\n" {
				t.Errorf("log %q", out)
			}
			b.deleted(req)
		})
	}
}

// Nothing is left of a process that has not been started, nor of one with children that ignore signals, in
// cgroups of their own and in the PID namespace of others.
func TestDirectDeleteOfWhatRuns(t *testing.T) {
	for name, tt := range map[string]struct{ started, shared bool }{
		"created": {}, "running": {started: true}, "in a shared PID namespace": {started: true, shared: true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			c := container{script: "trap '' TERM HUP; for i in 1 2 3; do sleep 1000 & done; echo up; wait", shared: tt.shared}
			c.Runtime, c.DirectStart, c.DirectDelete = b.onlyCreates(), true, true
			req := b.spec("c", c)
			if _, err := b.Create(b.context(), req); err != nil {
				t.Fatal(err)
			}
			if tt.started {
				if err := b.Start(b.context(), "c"); err != nil {
					t.Fatal(err)
				}
				b.eventually("its line", func() bool { out, _, _ := logged(t, req.LogPath, crilog.Stdout); return out == "up\n" })
				for _, dir := range cgroups(req) {
					if err := os.Mkdir(filepath.Join(dir, "below"), 0o755); err != nil {
						t.Fatal(err)
					}
				}
			}
			if len(cgroups(req)) == 0 {
				t.Error("the container has no cgroup")
			}
			b.deleted(req)
		})
	}
}

// cgroups are the directories of the container's cgroup in every hierarchy; crun leaves what it makes where
// none is mounted.
func cgroups(req *keeper.Create) []string {
	files, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	files = append(files, "/sys/fs/cgroup/cgroup.procs")
	var dirs []string
	for _, file := range files {
		dir := filepath.Join(filepath.Dir(file), req.CgroupPath)
		if _, err := os.Stat(dir); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// A process that was killed before its start cannot be started, and says why.
func TestDirectStartOfADeadProcess(t *testing.T) {
	b := newBench(t)
	c := container{script: "true"}
	c.Runtime, c.DirectStart, c.DirectDelete = b.onlyCreates(), true, true
	req := b.spec("c", c)
	pid, err := b.Create(b.context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if err = syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.exit("c")
	if err = b.Start(b.context(), "c"); err == nil {
		t.Error("a dead process was started")
	}
	t.Log(err)
	b.deleted(req)
}

// crunSays is the container's state, as crun knows it.
func (b *bench) crunSays(key string) string {
	b.t.Helper()
	said, err := ociruntime.Status(b.context(), ociruntime.Runtime{Path: "/usr/bin/crun", Args: []string{"--root", b.crun}}, key)
	if err != nil {
		b.t.Fatal(err)
	}
	return said
}

// deleted deletes a container and looks for what is left of it.
func (b *bench) deleted(req *keeper.Create) {
	b.t.Helper()
	if err := b.Delete(b.context(), req.Key); err != nil {
		b.t.Fatalf("delete: %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(b.crun, "*"))
	if left = append(left, cgroups(req)...); len(left) > 0 {
		b.t.Errorf("left behind: %v", left)
	}
}
