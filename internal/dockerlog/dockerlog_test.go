package dockerlog_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"gantry/internal/crilog"
	"gantry/internal/dockerlog"
	"gantry/internal/keeper"
	"gantry/internal/lab"
	"gantry/internal/labdocker"
	"gantry/internal/pod"
)

func TestMain(m *testing.M) { lab.Main(m) }

// patience is how long anything may take that is not measured.
const patience = 2 * time.Minute

// binary builds gantry-keeper once.
var binary = sync.OnceValues(func() (string, error) {
	path := "/run/gantry-keeper" // the lab's own, gone with it
	out, err := exec.Command("go", "build", "-o", path, "gantry/cmd/gantry-keeper").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
})

// bench is a Docker Engine, a keeper and what brings the one's output into logs.
type bench struct {
	*dockerlog.Logs
	t     testing.TB
	d     *labdocker.Daemon
	opts  dockerlog.Options
	state string // the keeper's
	dir   string
	image string
}

func newBench(t testing.TB, o labdocker.Options, follow bool) *bench {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatalf("build gantry-keeper: %v", err)
	}
	state, err := os.MkdirTemp("/run", "k")
	if err != nil {
		t.Fatal(err)
	}
	k, err := keeper.Connect(t.Context(), keeper.Options{StateDir: state, Binary: path, CgroupPath: lab.Cgroup(t)})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, state: state, dir: t.TempDir()}
	t.Cleanup(func() {
		_ = k.Close()
		b.endKeeper()
	})
	b.d = labdocker.Start(t, o)
	b.image = b.d.Busybox()
	api, err := client.New(client.WithHost(b.d.Endpoint()))
	if err != nil {
		t.Fatal(err)
	}
	b.opts = dockerlog.Options{Keeper: k, API: api, Driver: dockerlog.Driver(state), StateDir: filepath.Join(b.dir, "state"), Follow: follow}
	b.restart()
	t.Cleanup(func() { b.Shutdown() })
	return b
}

// keepers are the pids of the bench's keeper processes whose arguments contain word.
func (b *bench) keepers(word string) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		line, err := os.ReadFile(f)
		if err == nil && bytes.Contains(line, []byte("--state\x00"+b.state+"\x00")) && bytes.Contains(line, []byte(word)) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// endKeeper ends the keeper, which outlives its clients. All of it stops before the first process ends: a
// worker alone starts a new holder.
func (b *bench) endKeeper() {
	for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		for _, pid := range b.keepers("") {
			_ = syscall.Kill(pid, sig)
		}
	}
}

// restart is a server that starts.
func (b *bench) restart() {
	b.t.Helper()
	logs, err := dockerlog.New(b.opts)
	if err != nil {
		b.t.Fatal(err)
	}
	b.Logs = logs
}

// run creates a container with a log and starts it.
func (b *bench) run(key pod.Key, more ...string) (id, path string) {
	b.t.Helper()
	path = filepath.Join(b.dir, string(key)+".log")
	driver, options, err := b.Config(b.t.Context(), key, path, nil)
	if err != nil {
		b.t.Fatalf("config: %v", err)
	}
	args := []string{"create", "--network", "none", "--log-driver", driver, "--volume", b.dir + ":/shared"}
	for k, v := range options {
		args = append(args, "--log-opt", k+"="+v)
	}
	id = strings.TrimSpace(b.d.Docker(append(args, more...)...))
	if err := b.Follow(b.t.Context(), key, id); err != nil {
		b.t.Fatalf("follow: %v", err)
	}
	b.d.Docker("start", id)
	return id, path
}

// touch makes a file that the containers' scripts wait for.
func (b *bench) touch(name string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), nil, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) eventually(what string, ok func() bool) {
	b.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(end) {
			b.t.Fatalf("no %s in %v", what, patience)
		}
	}
}

// content is what a log says, and whether every line of the file is an entry.
func (b *bench) content(path string) (text string, torn bool) {
	b.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		b.t.Fatal(err)
	}
	var all []byte
	for line := range bytes.Lines(data) {
		e, err := crilog.Parse(line)
		if err != nil || !bytes.HasSuffix(line, []byte{'\n'}) {
			return string(all), true
		}
		if all = append(all, e.Content...); !e.Partial {
			all = append(all, '\n')
		}
	}
	return string(all), false
}

func (b *bench) becomes(path, want string) {
	b.t.Helper()
	got := ""
	defer func() {
		if got != want {
			b.t.Errorf("log of %d bytes, want %d: it ends in %.60q", len(got), len(want), got[max(0, len(got)-50):])
		}
	}()
	b.eventually("log", func() bool { got, _ = b.content(path); return len(got) >= len(want) })
}

// both runs f with both ways that there are, on every engine.
func both(t *testing.T, o labdocker.Options, f func(t *testing.T, b *bench)) {
	for name, follow := range map[string]bool{"driver": false, "followed": true} {
		for _, v := range labdocker.Versions() {
			t.Run(name+"/"+string(v), func(t *testing.T) {
				o.Version = v
				f(t, newBench(t, o, follow))
			})
		}
	}
}

func TestLog(t *testing.T) {
	both(t, labdocker.Options{}, func(t *testing.T, b *bench) {
		long := strings.Repeat("x", 40000)
		// Nothing orders what is written to two streams: each part comes when the one before is in the log.
		script := `wait() { until [ -e /shared/$1 ]; do sleep 0.05; done; }
echo one; wait two; echo two >&2; wait three; head -c 40000 /dev/zero | tr '\0' x; echo; printf end`
		id, path := b.run("pipes", b.image, "sh", "-c", script)
		b.becomes(path, "one\n")
		b.touch("two")
		b.becomes(path, "one\ntwo\n")
		b.touch("three")
		b.becomes(path, "one\ntwo\n"+long+"\nend")
		said := 0 // Docker's own copy comes after ours
		b.eventually("whole answer of docker logs", func() bool {
			out, err := b.d.DockerCommand(t.Context(), "logs", id).CombinedOutput()
			if err != nil {
				t.Fatalf("docker logs: %v: %s", err, out)
			}
			said = len(out)
			return said >= len("one\ntwo\n\nend")+len(long)
		})
		if said != len("one\ntwo\n\nend")+len(long) {
			t.Errorf("docker logs: %d bytes", said)
		}
		_, path = b.run("terminal", "-t", b.image, "sh", "-c", `echo one; head -c 40000 /dev/zero | tr '\0' x; echo; printf end`)
		b.becomes(path, "one\r\n"+long+"\r\nend")
	})
}

func TestReopenGoesOnInTheNewFile(t *testing.T) {
	both(t, labdocker.Options{}, func(t *testing.T, b *bench) {
		_, path := b.run("c", b.image, "sh", "-c", `echo one; while ! [ -e /shared/go ]; do sleep 0.05; done; echo two`)
		b.becomes(path, "one\n")
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
		if err := b.Reopen(t.Context(), "c"); err != nil {
			t.Fatalf("reopen: %v", err)
		}
		b.Shutdown() // the new file is empty: how far the log had come stands elsewhere
		b.restart()
		if err := b.Follow(t.Context(), "c", strings.TrimSpace(b.d.Docker("ps", "-q", "--no-trunc"))); err != nil {
			t.Fatalf("follow: %v", err)
		}
		if err := os.WriteFile(filepath.Join(b.dir, "go"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		b.becomes(path, "two\n")
		b.becomes(path+".1", "one\n")
	})
}

func TestRemovedContainerIsForgotten(t *testing.T) {
	both(t, labdocker.Options{}, func(t *testing.T, b *bench) {
		id, path := b.run("c", b.image, "echo", "one")
		b.becomes(path, "one\n")
		b.d.Docker("wait", id)
		b.d.Docker("rm", id)
		for range 2 {
			if err := b.Close(t.Context(), "c"); err != nil {
				t.Fatalf("close: %v", err)
			}
		}
		if left, err := os.ReadDir(b.opts.StateDir); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		b.becomes(path, "one\n")
	})
}

// TestFollowedLogIsExact ends the follower at random moments, as a SIGKILL in the middle of a write does.
func TestFollowedLogIsExact(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			b := newBench(t, labdocker.Options{Version: v}, true)
			const lines = 100_000
			id, path := b.run("c", b.image, "sh", "-c", fmt.Sprintf(`i=0; while [ $i -lt 100 ]; do seq $((i*%[1]d+1)) $((i*%[1]d+%[1]d)); i=$((i+1)); sleep 0.02; done`, lines/100))
			for range 30 {
				<-time.After(time.Duration(rand.IntN(100)) * time.Millisecond) // a random moment
				b.Shutdown()
				if info, err := os.Stat(path); err != nil {
					t.Fatal(err)
				} else if err := os.Truncate(path, max(0, info.Size()-rand.Int64N(1000))); err != nil {
					t.Fatal(err)
				}
				b.restart()
				if err := b.Follow(context.Background(), "c", id); err != nil {
					t.Fatalf("follow: %v", err)
				}
			}
			b.d.Docker("wait", id)
			var want strings.Builder
			for i := range lines {
				want.WriteString(strconv.Itoa(i+1) + "\n")
			}
			b.becomes(path, want.String())
		})
	}
}

func TestFollowedLogGoesOnAfterARestartOfDocker(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			b := newBench(t, labdocker.Options{Version: v, LiveRestore: true}, true)
			_, path := b.run("c", b.image, "sh", "-c", `echo one; while ! [ -e /shared/go ]; do sleep 0.05; done; echo two`)
			b.becomes(path, "one\n")
			b.d.Kill()
			b.d.Restart()
			if err := os.WriteFile(filepath.Join(b.dir, "go"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			b.becomes(path, "one\ntwo\n")
		})
	}
}
