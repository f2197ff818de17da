package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/engine/fake"
	"gantry/internal/lifecycle"
	"gantry/internal/pod"
)

func TestStopContainer(t *testing.T) {
	for rule, c := range map[string]struct {
		words []string
		stop  string
		grace time.Duration
		code  int32
		takes time.Duration
	}{
		"SIGTERM is the stop signal":            {[]string{"trap", "TERM", "3"}, "", 30 * time.Second, 3, 0},
		"the spec's stop signal comes first":    {[]string{"trap", "USR1", "4"}, "SIGUSR1", 30 * time.Second, 4, 0},
		"what ignores it is killed after grace": {[]string{"ignore", "TERM"}, "", 30 * time.Second, 137, 30 * time.Second},
		"without grace it is killed at once":    {[]string{"trap", "TERM", "3"}, "", 0, 137, 0},
		"a signal that is not trapped ends it":  {[]string{"sleep"}, "", time.Second, 143, 0},
	} {
		t.Run(rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				m := w.start()
				spec := container("main", c.words...)
				spec.StopSignal = c.stop
				id, err := m.CreateContainer(t.Context(), runPod(t, m, "web"), spec)
				if err != nil {
					t.Fatal(err)
				}
				if err := m.StartContainer(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				for range 2 {
					if err := m.StopContainer(t.Context(), id, c.grace); err != nil {
						t.Fatal(err)
					}
				}
				if took := time.Since(began); took != c.takes {
					t.Errorf("took %v; want %v", took, c.takes)
				}
				if is := stateOf(t, m, id); is.State != pod.ContainerExited || is.ExitCode != c.code || is.Pid != 0 || is.FinishedAt.Before(is.StartedAt) {
					t.Errorf("ended as %+v; want code %d", is, c.code)
				}
			})
		})
	}
}

func TestSecondStopWithLessGraceDoesNotWaitForTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		id := runContainer(t, m, runPod(t, m, "web"), "main", "ignore", "TERM")
		first := make(chan error, 1)
		go func() { first <- m.StopContainer(t.Context(), id, time.Hour) }()
		synctest.Wait()
		began := time.Now()
		if err := m.StopContainer(t.Context(), id, time.Second); err != nil {
			t.Fatal(err)
		}
		if err := <-first; err != nil {
			t.Errorf("the first stop: %v", err)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("took %v; want the second's grace", took)
		}
	})
}

func TestStopEndsWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		id := runContainer(t, m, runPod(t, m, "web"), "main", "ignore", "TERM")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := m.StopContainer(ctx, id, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v; want the context's error", err)
		}
	})
}

func TestProcessThatDoesNotDie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start(func(o *lifecycle.Options) { o.Times.Kill = 5 * time.Second })
		podID := runPod(t, m, "web")
		id := runContainer(t, m, podID, "main", "undead")
		began := time.Now()
		if err := m.StopContainer(t.Context(), id, 3*time.Second); !errdefs.IsUnavailable(err) {
			t.Errorf("stop: %v; want ErrUnavailable", err)
		}
		if took := time.Since(began); took != 8*time.Second {
			t.Errorf("stop took %v; want grace and a little", took)
		}
		if err := m.StopPod(t.Context(), podID); !errdefs.IsUnavailable(err) {
			t.Errorf("stop pod: %v; want ErrUnavailable", err)
		}
		if sb, err := m.Pod(t.Context(), podID); err != nil || sb.State != pod.SandboxNotReady || sb.Network != nil {
			t.Errorf("%+v, %v; want a pod that is not ready and has given back its network", sb, err)
		}
		if other := runPod(t, m, "other"); m.RemovePod(t.Context(), other) != nil {
			t.Error("another pod is disturbed")
		}
		if err := m.RemovePod(t.Context(), podID); !errdefs.IsUnavailable(err) {
			t.Errorf("remove pod: %v; want ErrUnavailable", err)
		}
		w.engine.Exit(keyOf(t, m, id), 137)
		<-time.After(5 * time.Minute) // of the bubble's clock
		w.mustBeEmpty("once the process has died after all")
	})
}

func TestHowContainersEnd(t *testing.T) {
	for rule, c := range map[string]struct {
		end    func(*fake.Engine, pod.Key)
		reason string
		code   int32
	}{
		"code 0 is Completed":        {func(e *fake.Engine, k pod.Key) { e.Exit(k, 0) }, pod.ReasonCompleted, 0},
		"any other code is Error":    {func(e *fake.Engine, k pod.Key) { e.Exit(k, 7) }, pod.ReasonError, 7},
		"out of memory is OOMKilled": {func(e *fake.Engine, k pod.Key) { e.OOMKill(k) }, pod.ReasonOOMKilled, 137},
		"an exit while the watch is broken is found": {func(e *fake.Engine, k pod.Key) {
			e.Faults().Add(fake.FailOn("Watch"))
			e.LoseWatches()
			synctest.Wait()
			e.Exit(k, 9)
			e.Faults().Lift("Watch")
		}, pod.ReasonError, 9},
	} {
		t.Run(rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				m := w.start()
				id := runContainer(t, m, runPod(t, m, "web"), "main", "sleep")
				c.end(w.engine, keyOf(t, m, id))
				<-time.After(time.Minute) // of the bubble's clock
				if is := stateOf(t, m, id); is.State != pod.ContainerExited || is.Reason != c.reason || is.ExitCode != c.code {
					t.Errorf("%s, %s, %d; want exited, %s, %d", is.State, is.Reason, is.ExitCode, c.reason, c.code)
				}
			})
		})
	}
}

func TestQuickExitKeepsItsStartTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		id := runContainer(t, m, runPod(t, m, "web"), "main", "exit", "0")
		synctest.Wait()
		if is := stateOf(t, m, id); is.State != pod.ContainerExited || is.StartedAt.IsZero() || is.FinishedAt.Before(is.StartedAt) {
			t.Errorf("%s, from %v to %v", is.State, is.StartedAt, is.FinishedAt)
		}
	})
}

func TestStartContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		podID := runPod(t, m, "web")
		id := runContainer(t, m, podID, "main", "sleep")
		if err := m.StartContainer(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("start of what runs: %v; want ErrFailedPrecondition", err)
		}
		broken := createContainer(t, m, podID, "broken")
		w.engine.Faults().Fail("StartContainer", errdefs.ErrInvalidArgument)
		if err := m.StartContainer(t.Context(), broken); !errdefs.IsInvalidArgument(err) {
			t.Errorf("start that fails: %v; want the engine's class", err)
		}
		if is := stateOf(t, m, broken); is.State != pod.ContainerExited || is.Reason != pod.ReasonStartFail || is.ExitCode != 128 || is.Message == "" {
			t.Errorf("after a failed start: %+v", is)
		}
		later := createContainer(t, m, podID, "later")
		w.engine.Faults().Fail("StartContainer", errdefs.ErrUnavailable)
		if err := m.StartContainer(t.Context(), later); !errdefs.IsUnavailable(err) {
			t.Errorf("start with an engine that does not answer: %v", err)
		}
		w.engine.Faults().Lift("StartContainer")
		if err := m.StartContainer(t.Context(), later); err != nil {
			t.Errorf("start once the engine answers again: %v", err)
		}
	})
}

// What a failed start has left running, and what could not be killed then, ends as soon as it can be.
func TestContainerThatRunsAfterAFailedStart(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprintf("server restarted %t", restarted), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				m := w.start()
				id := createContainer(t, m, runPod(t, m, "web"), "main", "sleep")
				w.engine.Faults().Add(fake.LoseAnswerOf("StartContainer"), fake.FailOn("SignalContainer"))
				if err := m.StartContainer(t.Context(), id); err == nil {
					t.Fatal("the start succeeded")
				}
				if restarted {
					w.stop(m)
				}
				w.engine.Faults().Lift("SignalContainer")
				if restarted {
					m = w.start()
				}
				<-time.After(time.Minute) // of the bubble's clock
				inv, err := w.engine.List(t.Context())
				if err != nil || len(inv.Containers) != 1 || inv.Containers[0].State != pod.ContainerExited {
					t.Errorf("the engine has %+v, %v; want it exited", inv.Containers, err)
				}
				if is := stateOf(t, m, id); is.State != pod.ContainerExited || is.Reason != pod.ReasonStartFail {
					t.Errorf("it is recorded as %s, %s", is.State, is.Reason)
				}
			})
		})
	}
}

func TestLogPathStaysInTheLogDirectory(t *testing.T) {
	w := newWorld(t)
	m := w.start()
	spec := sandbox("web")
	spec.LogDirectory = filepath.Join(w.dir, "logs")
	podID, err := m.RunPod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"main/0.log":            "main/0.log",
		"../../../etc/passwd":   "etc/passwd",
		"/absolute":             "absolute",
		"a/../../../../b/0.log": "b/0.log",
	} {
		c := container("c-" + want)
		c.LogName = name
		id, bad := m.CreateContainer(t.Context(), podID, c)
		if bad != nil {
			t.Fatal(bad)
		}
		if got := stateOf(t, m, id).Spec.LogPath; got != filepath.Join(spec.LogDirectory, want) {
			t.Errorf("log path %q became %s", name, got)
		}
		if dir := filepath.Join(spec.LogDirectory, filepath.Dir(want)); !exists(dir) {
			t.Errorf("%s was not made", dir)
		}
	}
	c := container("unlogged")
	id, err := m.CreateContainer(t.Context(), podID, c)
	if err != nil || stateOf(t, m, id).Spec.LogPath != "" {
		t.Errorf("a container without log path logs to %q, %v", stateOf(t, m, id).Spec.LogPath, err)
	}
}

// TestLogOfAContainerThatNeverWasIsGone has the engine make the log, and then fail.
func TestLogOfAContainerThatNeverWasIsGone(t *testing.T) {
	w := newWorld(t, fake.FailOn("CreateContainer"))
	m := w.start()
	spec := sandbox("web")
	spec.LogDirectory = filepath.Join(w.dir, "logs")
	podID, err := m.RunPod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(w.dir, "elsewhere")
	for _, dir := range []string{"a", "b", "c"} {
		if err := os.MkdirAll(filepath.Join(spec.LogDirectory, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{filepath.Join(spec.LogDirectory, "a/0.log"): "", filepath.Join(spec.LogDirectory, "b/0.log"): "a line\n", elsewhere: ""} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(elsewhere, filepath.Join(spec.LogDirectory, "c/0.log")); err != nil {
		t.Fatal(err)
	}
	for name, stays := range map[string]bool{"a/0.log": false, "b/0.log": true, "c/0.log": true, "d/0.log": false} {
		c := container("main")
		c.LogName = name
		if _, err := m.CreateContainer(t.Context(), podID, c); err == nil {
			t.Fatal("the container was created")
		}
		if _, err := os.Lstat(filepath.Join(spec.LogDirectory, name)); (err == nil) != stays {
			t.Errorf("%s: %v; it stays: %t", name, err, stays)
		}
	}
	if !exists(elsewhere) {
		t.Error("a file behind a link was removed")
	}
}

func TestTargetNamespaceIsOfARunningContainerOfThePod(t *testing.T) {
	w := newWorld(t)
	m := w.start()
	a, b := runPod(t, m, "a"), runPod(t, m, "b")
	running := runContainer(t, m, a, "main", "sleep")
	created := createContainer(t, m, a, "created")
	debug := func(podID, target string) error {
		c := container("debug")
		c.Namespaces.PID, c.Namespaces.TargetID = pod.NamespaceTarget, target
		_, err := m.CreateContainer(t.Context(), podID, c)
		return err
	}
	if err := debug(a, running); err != nil {
		t.Error(err)
	}
	if err := debug(a, created); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a target that does not run: %v; want ErrFailedPrecondition", err)
	}
	if err := debug(b, running); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a target in another pod: %v; want ErrInvalidArgument", err)
	}
}

func TestExecSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		podID := runPod(t, m, "web")
		id := runContainer(t, m, podID, "main", "sleep")
		r, err := m.ExecSync(t.Context(), id, []string{"echo", "out", "err"}, 0)
		if err != nil || string(r.Stdout) != "out" || string(r.Stderr) != "err" || r.ExitCode != 0 {
			t.Errorf("%+v, %v", r, err)
		}
		if r, err = m.ExecSync(t.Context(), id, []string{"exit", "3"}, time.Second); err != nil || r.ExitCode != 3 {
			t.Errorf("%+v, %v; want code 3 and no error", r, err)
		}
		began := time.Now()
		if _, err = m.ExecSync(t.Context(), id, []string{"sleep"}, time.Second); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("past its time-out: %v after %v", err, time.Since(began))
		}
		half := strings.Repeat("x", 10<<20)
		r, err = m.ExecSync(t.Context(), id, []string{"echo", half, half}, 0)
		if err != nil || len(r.Stdout)+len(r.Stderr) >= 16<<20 || r.Discarded != int64(20<<20-len(r.Stdout)-len(r.Stderr)) {
			t.Errorf("%d + %d bytes, %d discarded, %v; want less than a message and the rest counted", len(r.Stdout), len(r.Stderr), r.Discarded, err)
		}
		created := createContainer(t, m, podID, "created")
		if _, err := m.ExecSync(t.Context(), created, []string{"exit", "0"}, 0); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("in what does not run: %v; want ErrFailedPrecondition", err)
		}
		if err := m.Attach(t.Context(), created, engine.IO{}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("attach to what does not run: %v; want ErrFailedPrecondition", err)
		}
		if _, err := m.ExecSync(t.Context(), id, nil, 0); !errdefs.IsInvalidArgument(err) {
			t.Errorf("without a command: %v; want ErrInvalidArgument", err)
		}
	})
}

func TestPortForwardOnTheHostNetwork(t *testing.T) {
	w := newWorld(t)
	m := w.start()
	spec := sandbox("node")
	spec.Namespaces.Network = pod.NamespaceNode
	id, err := m.RunPod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		go upperCase(l)
		near, far := net.Pipe()
		forwarded := make(chan error, 1)
		go func() {
			forwarded <- m.PortForward(t.Context(), id, int32(l.Addr().(*net.TCPAddr).Port), halfCloser{far})
		}()
		if _, err := io.WriteString(near, "there and back"); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, len("there and back"))
		if _, err := io.ReadFull(near, buf); err != nil || string(buf) != "THERE AND BACK" {
			t.Errorf("%s: read %q, %v", address, buf, err)
		}
		_ = near.Close()
		if err := <-forwarded; err != nil {
			t.Errorf("%s: %v", address, err)
		}
		port := int32(l.Addr().(*net.TCPAddr).Port)
		_ = l.Close()
		near, far = net.Pipe()
		if err := m.PortForward(t.Context(), id, port, far); !errdefs.IsUnavailable(err) {
			t.Errorf("nobody listens: %v; want ErrUnavailable", err)
		}
		if _, err := near.Read(buf); !errors.Is(err, io.EOF) {
			t.Errorf("the client's stream is not closed: %v", err)
		}
	}
	if err := m.PortForward(t.Context(), id, 70000, nopStream{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("port 70000: %v; want ErrInvalidArgument", err)
	}
}

// upperCase answers every connection with what it says, in capitals.
func upperCase(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			buf := make([]byte, 1024)
			for {
				n, err := conn.Read(buf)
				if err != nil {
					return
				}
				_, _ = io.WriteString(conn, strings.ToUpper(string(buf[:n])))
			}
		}()
	}
}

// halfCloser is a stream whose write side ends by itself.
type halfCloser struct{ net.Conn }

func (h halfCloser) CloseWrite() error { return nil }

type nopStream struct{}

func (nopStream) Read([]byte) (int, error)    { return 0, io.EOF }
func (nopStream) Write(p []byte) (int, error) { return len(p), nil }
func (nopStream) Close() error                { return nil }

type reopener struct{ keys []string }

func (r *reopener) ReopenLog(_ context.Context, key string) error {
	r.keys = append(r.keys, key)
	return nil
}

func TestReopenLogAndUpdate(t *testing.T) {
	w := newWorld(t)
	logs := &reopener{}
	m := w.start(func(o *lifecycle.Options) { o.Logs = logs })
	podID := runPod(t, m, "web")
	id := runContainer(t, m, podID, "main", "sleep")
	if err := m.ReopenLog(t.Context(), id); err != nil || len(logs.keys) != 1 || logs.keys[0] != string(keyOf(t, m, id)) {
		t.Errorf("reopened %v, %v", logs.keys, err)
	}
	for _, r := range []pod.Resources{{CPUShares: 512, MemoryLimit: 1 << 20}, {CPUSetCPUs: "0"}} {
		if err := m.UpdateContainer(t.Context(), id, &r); err != nil {
			t.Fatal(err)
		}
	}
	if r := stateOf(t, m, id).Spec.Resources; r.CPUShares != 512 || r.MemoryLimit != 1<<20 || r.CPUSetCPUs != "0" {
		t.Errorf("after two updates the container has %+v", r)
	}
	if err := m.StopContainer(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
	for act, err := range map[string]error{
		"reopen the log of": m.ReopenLog(t.Context(), id),
		"update":            m.UpdateContainer(t.Context(), id, &pod.Resources{}),
	} {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s what has ended: %v; want ErrFailedPrecondition", act, err)
		}
	}
}
