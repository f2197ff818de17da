package keeper_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/keeper"
	"gantry/internal/ociruntime"
)

// dying returns a runtime that is killed in its first command of that name, before or after it has
// done what it was asked for.
func (b *bench) dying(command, when string) keeper.Runtime {
	b.t.Helper()
	path, armed := filepath.Join(b.dir, "dying"), filepath.Join(b.dir, "armed")
	script := fmt.Sprintf("#!/bin/sh\ncase \" $* \" in *\" %s \"*) [ -f %[2]s ] && rm %[2]s && { [ %[3]s = before ] || /usr/bin/crun \"$@\"; kill -9 $$; };; esac\nexec /usr/bin/crun \"$@\"\n",
		command, armed, when)
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(armed, nil, 0o600); err != nil {
		b.t.Fatal(err)
	}
	return keeper.Runtime{Path: path, Args: []string{"--root", b.crun}}
}

func TestStartSurvivesAKilledRuntime(t *testing.T) {
	for _, when := range []string{"before", "after"} {
		t.Run(when+" it was done", func(t *testing.T) {
			b := newBench(t)
			c := container{script: waitAndExit}
			c.Runtime = b.dying("start", when)
			if _, err := b.Create(b.context(), b.spec("c", c)); err != nil {
				t.Fatal(err)
			}
			if err := b.Start(b.context(), "c"); err != nil {
				t.Fatalf("start: %v", err)
			}
			b.touch("go")
			if e := b.exit("c"); e.Code != 9 {
				t.Errorf("exit %+v, want 9", e)
			}
		})
	}
}

// A start that was killed when it had told the process to go on, and had not noted it, is not waited for again.
func TestStartThatWasHeardAndNotNoted(t *testing.T) {
	for name, tell := range map[string]string{"crun": "echo >%s", "runc": "head -c 1 %s"} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			path, armed, root := filepath.Join(b.dir, "dying"), filepath.Join(b.dir, "armed"), filepath.Join(b.crun, name)
			script := fmt.Sprintf("#!/bin/sh\ncase \" $* \" in *\" start \"*) rm %s && { %s; kill -9 $$; };; esac\nexec /usr/bin/%s \"$@\"\n",
				armed, fmt.Sprintf(tell, filepath.Join(root, "c", "exec.fifo")), name)
			if err := errors.Join(os.WriteFile(path, []byte(script), 0o700), os.WriteFile(armed, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			c := container{script: waitAndExit}
			c.Runtime = keeper.Runtime{Path: path, Args: []string{"--root", root}}
			began := time.Now()
			req := b.run("c", c)
			if took := time.Since(began); took > time.Minute { // the runtime has two before it is killed
				t.Errorf("the start took %v", took)
			}
			said, err := ociruntime.Status(b.context(), ociruntime.Runtime{Path: "/usr/bin/" + name, Args: []string{"--root", root}}, req.Key)
			if err != nil || said != "running" {
				t.Errorf("the runtime says %q, %v", said, err)
			}
			b.touch("go")
			if e := b.exit("c"); e.Code != 9 {
				t.Errorf("exit %+v, want 9", e)
			}
		})
	}
}

// A process that has heard of its start may come to its program late, when the repeated start has failed already.
func TestStartThatWasHeardAndIsAnsweredLate(t *testing.T) {
	b := newBench(t)
	path, armed := filepath.Join(b.dir, "dying"), filepath.Join(b.dir, "armed")
	script := `#!/bin/sh
pid=$(cat ` + filepath.Join(b.state, "c", "c", "pid") + ` 2>/dev/null)
case " $* " in *" start "*)
	rm ` + armed + ` && { kill -STOP $pid; echo >` + filepath.Join(b.crun, "c", "exec.fifo") + `; kill -9 $$; }
	(sleep 1; kill -CONT $pid) >/dev/null 2>&1 &
	echo it runs >&2; exit 1;;
esac
exec /usr/bin/crun "$@"
`
	if err := errors.Join(os.WriteFile(path, []byte(script), 0o700), os.WriteFile(armed, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	c := container{script: waitAndExit}
	c.Runtime = keeper.Runtime{Path: path, Args: []string{"--root", b.crun}}
	b.run("c", c)
	b.touch("go")
	if e := b.exit("c"); e.Code != 9 {
		t.Errorf("exit %+v, want 9", e)
	}
}

func TestKilledRuntimeIsUnavailable(t *testing.T) {
	b := newBench(t)
	c := container{script: waitAndExit}
	c.Runtime = b.dying("create", "before")
	req := b.spec("c", c)
	if _, err := b.Create(b.context(), req); !errdefs.IsUnavailable(err) {
		t.Errorf("create: %v, want unavailable: nothing is wrong with the container", err)
	}
	if _, err := b.Create(b.context(), req); err != nil {
		t.Errorf("repeat: %v", err)
	}
}

// crun mounts its own program for a moment at each start; one that is killed then leaves the mount.
func TestMountOfAKilledRuntimeIsTakenAway(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(b.dir, "dying")
	script := `#!/bin/sh
case " $* " in *" create "*)
	touch "$_LIBCONTAINER_STATEDIR/crun.abcdef"
	mount --bind /usr/bin/crun "$_LIBCONTAINER_STATEDIR/crun.abcdef"
	kill -9 $$;;
esac
exec /usr/bin/crun "$@"
`
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	c := container{script: waitAndExit}
	c.Runtime = keeper.Runtime{Path: path, Args: []string{"--root", b.crun}}
	if _, err := b.Create(b.context(), b.spec("c", c)); !errdefs.IsUnavailable(err) {
		t.Errorf("create: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), "crun.abcdef") {
		t.Errorf("the mount is left: %v\n%s", err, mounts)
	}
}
