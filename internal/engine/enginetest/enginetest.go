// Package enginetest is the contract of package engine as a test suite. Every engine passes it, and
// so does the fake that the pod logic is tested with:
//
//	func TestContract(t *testing.T) {
//		enginetest.Run(t, func(t *testing.T) enginetest.Harness { … })
//	}
//
// The suite never sleeps: it waits for what the engine reports, and fails after Harness.Patience.
package enginetest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// Harness is one engine under test, with what only its owner knows.
type Harness struct {
	// Engine has nothing in it. It may be shared by the tests that one call of the constructor serves.
	Engine engine.Engine
	// Image is in the engine's store; its programs are those that Commands name.
	Image    *pod.Image
	Commands Commands
	// Sandbox, if set, completes the spec of each sandbox, such as with a cgroup parent.
	Sandbox func(*pod.SandboxSpec)
	// Container, if set, completes the spec of each container.
	Container func(*pod.ContainerSpec)
	// Patience is how long one test of the suite may take, and so anything in it; zero is three minutes.
	Patience time.Duration
}

// Commands are programs for the contract to run.
type Commands struct {
	Exit   func(code string) []string           // ends at once with the code
	Sleep  []string                             // runs until it is killed
	Trap   func(sig, code string) []string      // runs until sig ("TERM") comes, then ends with the code; prints "ready" first where it can
	Ignore func(sig string) []string            // runs, ignoring sig
	Echo   func(stdout, stderr string) []string // writes both without a newline, ends with 0
	Cat    []string                             // copies standard input to standard output until it ends
}

// Shell are the Commands of an image with a POSIX shell, such as busybox.
func Shell() Commands {
	sh := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	return Commands{
		Exit:  func(code string) []string { return sh("exit " + code) },
		Sleep: sh("while :; do sleep 1000; done"),
		Trap: func(sig, code string) []string {
			return sh("trap 'exit " + code + "' " + sig + "; echo ready; while :; do sleep 1000 & wait $!; done")
		},
		Ignore: func(sig string) []string { return sh("trap '' " + sig + "; echo ready; while :; do sleep 1000; done") },
		Echo:   func(out, err string) []string { return sh("printf %s '" + out + "'; printf %s '" + err + "' >&2") },
		Cat:    []string{"/bin/cat"},
	}
}

// Run holds the engine that open returns to the contract. Each test opens its own harness.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	t.Helper()
	for _, test := range []struct {
		rule string
		run  func(*testing.T, *bench)
	}{
		{"a sandbox lives from create to remove", sandboxLife},
		{"doing what is done succeeds", repeats},
		{"undoing what was never done succeeds", undoNothing},
		{"what is not there is ErrNotFound", unknownKeys},
		{"a container lives from create to remove", containerLife},
		{"remove kills what runs", removeKills},
		{"exit codes arrive by Watch and List", exitCodes},
		{"an exit that nobody watched is not lost", unwatchedExit},
		{"every watcher is told", twoWatchers},
		{"Watch ends with its context", watchEnds},
		{"signals reach the process", signals},
		{"signals to what has ended are no error", lateSignals},
		{"an unknown signal is ErrInvalidArgument", badSignal},
		{"exec gives output and exit code", execOutput},
		{"exec passes standard input", execInput},
		{"exec ends with its context", execCancel},
		{"exec in what does not run is ErrFailedPrecondition", execNotRunning},
		{"attach reaches the container's own streams", attach},
		{"attach ends with its context", attachCancel},
		{"sandboxes and containers do not disturb each other", concurrent},
		{"an ended context leaves nothing that remove does not find", endedContext},
		{"an engine that works says so", status},
	} {
		t.Run(test.rule, func(t *testing.T) {
			test.run(t, newBench(t, open(t)))
		})
	}
}

// bench is a harness with a context and shorthands that fail the test.
type bench struct {
	Harness
	t   *testing.T
	ctx context.Context
}

func newBench(t *testing.T, h Harness) *bench {
	if h.Patience == 0 {
		h.Patience = 3 * time.Minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), h.Patience)
	t.Cleanup(cancel)
	return &bench{Harness: h, t: t, ctx: ctx}
}

// sandbox is a sandbox of a test with the files that lifecycle would have written.
type sandbox struct {
	spec  *pod.SandboxSpec
	files engine.Files
	made  engine.Made
	state *pod.Sandbox
}

func (b *bench) newSandbox() *sandbox {
	b.t.Helper()
	dir := b.t.TempDir()
	files := engine.Files{Dir: dir, ResolvConf: filepath.Join(dir, "resolv.conf"), Hosts: filepath.Join(dir, "hosts"), Hostname: filepath.Join(dir, "hostname")}
	for path, content := range map[string]string{files.ResolvConf: "nameserver 192.0.2.1\n", files.Hosts: "127.0.0.1 localhost\n", files.Hostname: "contract\n"} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
	key := pod.NewKey()
	spec := &pod.SandboxSpec{
		Key:          key,
		Metadata:     pod.Metadata{Name: "contract", UID: string(key[:8]), Namespace: "enginetest"},
		Hostname:     "contract",
		LogDirectory: filepath.Join(dir, "logs"),
		Namespaces:   pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceContainer, IPC: pod.NamespacePod},
	}
	if b.Sandbox != nil {
		b.Sandbox(spec)
	}
	if err := os.MkdirAll(spec.LogDirectory, 0o755); err != nil {
		b.t.Fatal(err)
	}
	return &sandbox{spec: spec, files: files}
}

// create makes and starts a sandbox, and removes it when the test ends.
func (b *bench) create() *sandbox {
	b.t.Helper()
	s := b.newSandbox()
	b.cleanup(func(ctx context.Context) error {
		if err := b.Engine.StopSandbox(ctx, s.spec.Key); err != nil {
			return err
		}
		return b.Engine.RemoveSandbox(ctx, s.spec.Key)
	})
	made, err := b.Engine.CreateSandbox(b.ctx, s.spec, s.files)
	b.must("create sandbox", err)
	b.must("start sandbox", b.Engine.StartSandbox(b.ctx, s.spec.Key))
	s.made = made
	s.state = &pod.Sandbox{Spec: *s.spec, ID: made.ID, State: pod.SandboxReady, NetNS: made.NetNS, CreatedAt: time.Now()}
	return s
}

func (b *bench) request(s *sandbox, command []string) *engine.Create {
	key := pod.NewKey()
	spec := &pod.ContainerSpec{
		Key: key, Sandbox: s.spec.Key, Name: "main", ImageID: b.Image.ID, Command: command,
		LogPath:    filepath.Join(s.spec.LogDirectory, string(key)+".log"),
		Namespaces: s.spec.Namespaces,
	}
	if b.Container != nil {
		b.Container(spec)
	}
	return &engine.Create{Spec: spec, Sandbox: s.state, Files: s.files, Image: b.Image}
}

// container makes a container, and removes it when the test ends.
func (b *bench) container(s *sandbox, command []string) pod.Key {
	b.t.Helper()
	return b.made(b.request(s, command))
}

func (b *bench) made(req *engine.Create) pod.Key {
	b.t.Helper()
	b.cleanup(func(ctx context.Context) error { return b.Engine.RemoveContainer(ctx, req.Spec.Key) })
	_, err := b.Engine.CreateContainer(b.ctx, req)
	b.must("create container", err)
	return req.Spec.Key
}

func (b *bench) start(key pod.Key) {
	b.t.Helper()
	_, err := b.Engine.StartContainer(b.ctx, key)
	b.must("start container", err)
}

// running makes and starts a container.
func (b *bench) running(s *sandbox, command []string) pod.Key {
	b.t.Helper()
	key := b.container(s, command)
	b.start(key)
	return key
}

// cleanup undoes with a context that outlives the test's own.
func (b *bench) cleanup(undo func(context.Context) error) {
	b.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), b.Patience)
		defer cancel()
		if err := undo(ctx); err != nil {
			b.t.Errorf("clean up: %v", err)
		}
	})
}

func (b *bench) must(act string, err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatalf("%s: %v", act, err)
	}
}

func (b *bench) watch() <-chan engine.Event {
	b.t.Helper()
	events, err := b.Engine.Watch(b.ctx)
	b.must("watch", err)
	return events
}

// exit waits until events tell how key ended.
func (b *bench) exit(events <-chan engine.Event, key pod.Key) pod.Exit {
	b.t.Helper()
	for {
		select {
		case ev, ok := <-events:
			if !ok {
				b.t.Fatalf("the watch ended before %s did", key.Short())
			}
			if ev.Key == key && ev.Exit != nil {
				return *ev.Exit
			}
		case <-b.ctx.Done():
			b.t.Fatalf("no exit of %s was reported", key.Short())
		}
	}
}

// find returns what List says of a container, nil when it is not there.
func (b *bench) find(key pod.Key) *engine.ContainerInfo {
	b.t.Helper()
	inv, err := b.Engine.List(b.ctx)
	b.must("list", err)
	for i := range inv.Containers {
		if inv.Containers[i].Key == key {
			return &inv.Containers[i]
		}
	}
	return nil
}

func (b *bench) findSandbox(key pod.Key) *engine.SandboxInfo {
	b.t.Helper()
	inv, err := b.Engine.List(b.ctx)
	b.must("list", err)
	for i := range inv.Sandboxes {
		if inv.Sandboxes[i].Key == key {
			return &inv.Sandboxes[i]
		}
	}
	return nil
}
