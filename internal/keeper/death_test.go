package keeper_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gantry/internal/crilog"
	"gantry/internal/keeper"
)

// touch makes a file that the containers' scripts wait for.
func (b *bench) touch(name string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.shared(), name), nil, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

const waitAndExit = `echo up; while ! [ -e /shared/go ]; do sleep 0.01; done; echo down; exit 9`

func TestExitWhileTheWorkerIsDead(t *testing.T) {
	b := newBench(t)
	req := b.run("c", container{script: waitAndExit})
	worker := b.worker()
	if worker == 0 { // which would be the test itself
		t.Fatal("there is no worker")
	}
	if err := syscall.Kill(worker, syscall.SIGSTOP); err != nil { // as good as dead
		t.Fatal(err)
	}
	b.touch("go")
	b.eventually("exit record", func() bool {
		_, err := os.Stat(filepath.Join(b.state, "c", "c", "exit.json"))
		return err == nil
	})
	b.kill(b.worker)
	if e := b.exit("c"); e.Code != 9 || e.Unknown {
		t.Errorf("exit %+v, want 9", e)
	}
	if out, _, _ := logged(t, req.LogPath, crilog.Stdout); out != "up\ndown\n" {
		t.Errorf("log %q", out)
	}
}

func TestCreatesAndStartsSurviveWorkerDeaths(t *testing.T) {
	b := newBench(t)
	stop := make(chan struct{})
	killed := make(chan int)
	var at atomic.Int32 // the container whose turn it is
	go func() {
		const first = 150 * time.Millisecond
		n, life, last := 0, first, at.Load()
		for {
			select {
			case <-stop:
				killed <- n
				return
			case <-time.After(rand.N(life)): // a random moment
			}
			// Each worker for one container may live longer than the one before: on a slow machine, too, one comes to the end.
			if now := at.Load(); now != last {
				life, last = first, now
			}
			if pid := b.worker(); pid > 0 && syscall.Kill(pid, syscall.SIGKILL) == nil {
				n, life = n+1, life+life/8
			}
		}
	}()
	for i := range 15 {
		at.Store(int32(i))
		key := fmt.Sprintf("c%d", i)
		c := container{script: "echo hello; exit 6"}
		c.TTY = i%3 == 2
		c.DirectStart, c.DirectDelete = i%2 == 0, i%4 < 2
		req := b.run(key, c)
		if e := b.exit(key); e.Code != 6 {
			t.Errorf("%s: exit %+v, want 6", key, e)
		}
		if out, _, _ := logged(t, req.LogPath, crilog.Stdout); strings.TrimRight(out, "\r\n") != "hello" {
			t.Errorf("%s: log %q", key, out)
		}
		if err := b.Delete(b.context(), key); err != nil {
			t.Errorf("%s: delete: %v", key, err)
		}
	}
	close(stop)
	t.Logf("%d kills", <-killed)
	if left, _ := filepath.Glob(b.crun + "/*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// learned says whether e is the code, or that nobody can tell.
func learned(e keeper.Exit, code int32) bool {
	if e.Unknown {
		code = 255
	}
	return e.Code == code
}

func TestHolderDeath(t *testing.T) {
	for name, tty := range map[string]bool{"pipes": false, "terminal": true} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			check := &checker{t: t, tty: tty}
			c := container{script: numbers}
			c.TTY = tty
			req := b.run("writer", c)
			for range 5 {
				b.kill(b.holder)
				b.eventually("new holder", func() bool { return b.holder() > 0 })
				if s := b.stateOf("writer"); s == nil || s.Phase != "running" {
					t.Fatalf("state %+v", s)
				}
				b.kill(b.worker)
				b.stateOf("writer") // answered by a worker that has everything
			}
			b.run("later", container{script: "exit 3"})
			if e := b.exit("later"); e.Code != 3 || e.Unknown {
				t.Errorf("exit of a container of the new holder: %+v, want 3", e)
			}
			b.touch("stop")
			// The container is no child of the new holder: the kernel must be asked, and older ones do not tell.
			if e := b.exit("writer"); !learned(e, 7) {
				t.Errorf("exit %+v, want 7, or 255 and unknown", e)
			} else {
				t.Logf("exit %+v", e)
			}
			check.file(req.LogPath)
			if check.next == 0 || check.next%20000 != 0 {
				t.Errorf("the log ends after line %d", check.next)
			}
		})
	}
}

func TestWorkerDeathWhileItHandsOver(t *testing.T) {
	b := newBench(t)
	b.run("c", container{script: waitAndExit})
	for range 10 {
		b.eventually("holder", func() bool { return b.holder() > 0 })
		worker := b.worker()
		if worker == 0 {
			t.Fatal("there is no worker")
		}
		b.kill(b.holder)
		<-time.After(time.Duration(rand.IntN(4000)) * time.Microsecond) // a random moment
		_ = syscall.Kill(worker, syscall.SIGKILL)
		if s := b.stateOf("c"); s == nil || s.Phase != "running" {
			t.Fatalf("state %+v", s)
		}
	}
	b.touch("go")
	if e := b.exit("c"); !learned(e, 9) {
		t.Errorf("exit %+v, want 9, or 255 and unknown", e)
	}
}

func TestHolderAndWorkerDeath(t *testing.T) {
	b := newBench(t)
	req := b.run("lives", container{script: waitAndExit})
	const ends = `while ! [ -e /shared/end ]; do sleep 0.01; done; exit 2`
	b.run("ends", container{script: ends})
	// What is between FIFO and log at that moment dies with both.
	b.eventually("logged output", func() bool { data, _ := os.ReadFile(req.LogPath); return len(data) > 0 })
	b.killBoth()
	b.touch("end")
	b.eventually("end of a container", func() bool { return !processRuns("/bin/sh", "-c", ends) })
	if e := b.exit("ends"); !learned(e, 2) {
		t.Errorf("exit that nobody saw: %+v", e)
	}
	if s := b.stateOf("lives"); s == nil || s.Phase != "running" {
		t.Errorf("state %+v", s)
	}
	b.touch("go")
	b.exit("lives")
	if out, _, _ := logged(t, req.LogPath, crilog.Stdout); out != "up\ndown\n" {
		t.Errorf("log %q", out)
	}
}

// TestLogDirectoryThatWentWithTheKeeper: nobody can log the container then, and that is no reason
// not to see its end.
func TestLogDirectoryThatWentWithTheKeeper(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(b.dir, "logs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	c := container{script: `while ! [ -e /shared/end ]; do echo line; done; echo last; while ! [ -e /shared/go ]; do sleep 0.01; done`}
	c.LogPath = filepath.Join(dir, "log")
	req := b.run("c", c)
	b.killBoth()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if s := b.stateOf("c"); s == nil || s.Phase != "running" {
		t.Fatalf("state %+v", s)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := b.ReopenLog(b.context(), "c"); err != nil {
		t.Errorf("reopen: %v", err)
	}
	b.touch("end")
	b.eventually("output after the log was reopened", func() bool {
		data, _ := os.ReadFile(req.LogPath)
		return strings.HasSuffix(string(data), " stdout F last\n")
	})
	if err := b.Signal(b.context(), "c", syscall.SIGKILL); err != nil {
		t.Errorf("signal: %v", err)
	}
	b.exit("c")
}

// processRuns says whether a process runs that has these arguments, one behind the other. Parts of words do not count:
// names that are made up at random may contain any number.
func processRuns(arguments ...string) bool {
	want := "\x00" + strings.Join(arguments, "\x00") + "\x00"
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		if data, _ := os.ReadFile(path); strings.Contains("\x00"+string(data), want) {
			return true
		}
	}
	return false
}

func TestUpgradeKeepsEverything(t *testing.T) {
	b := newBench(t)
	check := &checker{t: t, tty: true}
	c := container{script: numbers}
	c.TTY = true
	req := b.run("writer", c)
	b.eventually("output", func() bool { info, err := os.Stat(req.LogPath); return err == nil && info.Size() > 0 })
	holder, worker := b.holder(), b.worker()
	if holder == 0 || worker == 0 {
		t.Fatalf("holder %d, worker %d", holder, worker)
	}
	if err := syscall.Kill(holder, syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	b.eventually("new worker", func() bool { w := b.worker(); return w > 0 && w != worker })
	if now := b.holder(); now != holder || len(b.keepers("--resume")) != 1 {
		t.Errorf("holder %d became %d, %v", holder, now, b.keepers("--resume"))
	}
	b.touch("stop")
	if e := b.exit("writer"); e.Code != 7 || e.Unknown {
		t.Errorf("exit %+v, want 7", e)
	}
	check.file(req.LogPath)
	if check.next == 0 || check.next%20000 != 0 {
		t.Errorf("the log ends after line %d", check.next)
	}
}

// TestServer is no test but the server that TestServerDeath kills.
func TestServer(t *testing.T) {
	state := os.Getenv("GANTRY_TEST_SERVER")
	if state == "" {
		return
	}
	_, err := keeper.Connect(context.Background(), keeper.Options{StateDir: state, Binary: os.Getenv("GANTRY_TEST_KEEPER")})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = os.Stdout.WriteString("connected\n")
	select {}
}

func TestServerDeath(t *testing.T) {
	for name, sig := range map[string]syscall.Signal{"SIGTERM to its process group": syscall.SIGTERM, "SIGKILL": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.end() // the server is to start the keeper
			path, err := binary()
			if err != nil {
				t.Fatal(err)
			}
			server := exec.Command("/proc/self/exe", "-test.run=^TestServer$")
			server.Env = append(os.Environ(), "GANTRY_TEST_SERVER="+b.state, "GANTRY_TEST_KEEPER="+path)
			server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			out, err := server.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := server.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := out.Read(make([]byte, 64)); err != nil {
				t.Fatal(err)
			}
			holder := b.holder()
			target := server.Process.Pid
			if sig == syscall.SIGTERM {
				target = -target
			}
			b.run("c", container{script: waitAndExit})
			if err := syscall.Kill(target, sig); err != nil {
				t.Fatal(err)
			}
			_ = server.Wait()
			b.touch("go")
			if e := b.exit("c"); e.Code != 9 {
				t.Errorf("exit %+v, want 9", e)
			}
			if now := b.holder(); now != holder || now == 0 {
				t.Errorf("holder %d became %d", holder, now)
			}
		})
	}
}

func TestKeeperThatCannotBeStarted(t *testing.T) {
	for name, opt := range map[string]keeper.Options{
		"no such binary":      {StateDir: t.TempDir(), Binary: "/no/such/keeper"},
		"relative directory":  {StateDir: "state", Binary: "/bin/true"},
		"a binary that fails": {StateDir: t.TempDir(), Binary: "/bin/false"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := keeper.Connect(context.Background(), opt)
			if err == nil {
				_ = c.Close()
				t.Fatal("connected")
			}
			t.Log(err)
		})
	}
}
