package docker_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"gantry/internal/engine"
	"gantry/internal/labdocker"
	"gantry/internal/pod"
)

// TestTerminalSizes resizes the terminal of a container and that of a process in it.
func TestTerminalSizes(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			s := newStation(t, labdocker.Options{Version: v})
			key := s.terminal(t)
			for name, connect := range map[string]func(context.Context, engine.IO) error{
				"attach": func(ctx context.Context, streams engine.IO) error { return s.Attach(ctx, key, streams) },
				"exec": func(ctx context.Context, streams engine.IO) error {
					_, err := s.Exec(ctx, key, &engine.Exec{Args: sizes, TTY: true, IO: streams})
					return err
				},
			} {
				t.Run(name, func(t *testing.T) { followsSizes(t, connect) })
			}
		})
	}
}

// TestTerminalOutlivesItsInput has a client whose input ends before the program has written.
func TestTerminalOutlivesItsInput(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			s := newStation(t, labdocker.Options{Version: v})
			var out bytes.Buffer
			code, err := s.Exec(t.Context(), s.terminal(t), &engine.Exec{
				Args: []string{"sh", "-c", "sleep 0.5; echo late; exit 3"}, TTY: true,
				IO: engine.IO{Stdin: strings.NewReader(""), Stdout: &out},
			})
			if err != nil || code != 3 || out.String() != "late\r\n" {
				t.Errorf("%q, exit code %d, %v", out.String(), code, err)
			}
		})
	}
}

// sizes prints the terminal's size again and again, rows first.
var sizes = []string{"sh", "-c", "while :; do stty size; usleep 50000; done"}

// terminal runs sizes in a pod of its own, with a terminal.
func (s *station) terminal(t *testing.T) pod.Key {
	t.Helper()
	ctx, dir := t.Context(), t.TempDir()
	files := engine.Files{Dir: dir, ResolvConf: filepath.Join(dir, "resolv.conf"), Hostname: filepath.Join(dir, "hostname")}
	for _, path := range []string{files.ResolvConf, files.Hostname} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	own := pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceContainer, IPC: pod.NamespacePod}
	sb := &pod.Sandbox{State: pod.SandboxReady, Spec: pod.SandboxSpec{
		Key: pod.NewKey(), Metadata: pod.Metadata{Name: "terminal", UID: "1", Namespace: "lab"}, CgroupParent: s.dockerd.Cgroup, Namespaces: own,
	}}
	c := &pod.ContainerSpec{Key: pod.NewKey(), Sandbox: sb.Spec.Key, Name: "main", ImageID: s.image.ID, Command: sizes, TTY: true, Stdin: true, Namespaces: own}
	t.Cleanup(func() {
		end := context.Background() // the test's has ended
		if err := errors.Join(s.RemoveContainer(end, c.Key), s.StopSandbox(end, sb.Spec.Key), s.RemoveSandbox(end, sb.Spec.Key)); err != nil {
			t.Error(err)
		}
	})
	made, err := s.CreateSandbox(ctx, &sb.Spec, files)
	if err != nil {
		t.Fatal(err)
	}
	sb.ID, sb.NetNS = made.ID, made.NetNS
	if _, err = s.CreateContainer(ctx, &engine.Create{Spec: c, Sandbox: sb, Files: files, Image: s.image}); err != nil {
		t.Fatal(err)
	}
	if _, err = s.StartContainer(ctx, c.Key); err != nil {
		t.Fatal(err)
	}
	return c.Key
}

// followsSizes wants each size to be seen by the program before the next is told.
func followsSizes(t *testing.T, connect func(context.Context, engine.IO) error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resize, out := make(chan engine.Size), new(lines)
	ended := make(chan error, 1)
	go func() { ended <- connect(ctx, engine.IO{Stdout: out, Resize: resize}) }()
	for _, step := range []struct {
		size engine.Size
		want string
	}{{engine.Size{Width: 80, Height: 24}, "24 80"}, {engine.Size{Width: 132, Height: 50}, "50 132"}} {
		seen := out.await(step.want)
		for waiting := true; waiting; {
			select {
			case resize <- step.size: // it may come before the program does, which Docker refuses
			case <-seen:
				waiting = false
			case err := <-ended:
				t.Fatalf("ended: %v", err)
			case <-ctx.Done():
				t.Fatalf("the program never saw %s", step.want)
			}
		}
	}
	cancel()
	<-ended
}

// lines tells when a line is written that somebody waits for.
type lines struct {
	wanted atomic.Pointer[line]
	rest   []byte
}

type line struct {
	text string
	seen chan struct{}
	once sync.Once
}

func (l *lines) await(text string) (seen <-chan struct{}) {
	w := &line{text: text, seen: make(chan struct{})}
	l.wanted.Store(w)
	return w.seen
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		text, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		l.rest = rest
		if w := l.wanted.Load(); w != nil && string(bytes.TrimSpace(text)) == w.text {
			w.once.Do(func() { close(w.seen) })
		}
	}
}
