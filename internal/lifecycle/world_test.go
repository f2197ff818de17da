package lifecycle_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"gantry/internal/cni"
	"gantry/internal/engine"
	"gantry/internal/engine/fake"
	"gantry/internal/lab"
	"gantry/internal/lifecycle"
	"gantry/internal/pod"
	"gantry/internal/store"
)

// The ports that a test frees on the node's loopback are nobody else's there.
func TestMain(m *testing.M) { lab.Main(m) }

const image = "localhost/busybox:1"

// network is a lifecycle.Network in memory.
type network struct {
	mu       sync.Mutex
	attached map[pod.Key]struct{} // guarded by mu
	broken   map[string]error     // by method; guarded by mu
	hanging  map[string]bool      // by method; guarded by mu
}

func newNetwork() *network {
	return &network{attached: map[pod.Key]struct{}{}, broken: map[string]error{}, hanging: map[string]bool{}}
}

func (n *network) fail(method string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.broken[method] = err
}

func (n *network) hang(method string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hanging[method] = on
}

func (n *network) do(ctx context.Context, method string, f func()) error {
	n.mu.Lock()
	hanging := n.hanging[method]
	n.mu.Unlock()
	if hanging {
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s was cut off: %w", method, context.Cause(ctx))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.broken[method]; err != nil {
		return err
	}
	f()
	return nil
}

func (n *network) Attach(ctx context.Context, a *cni.Attachment) (*pod.Network, error) {
	if err := n.do(ctx, "Attach", func() { n.attached[a.Key] = struct{}{} }); err != nil {
		return nil, err
	}
	return &pod.Network{IPs: []string{"192.0.2.7"}}, nil
}

func (n *network) Detach(ctx context.Context, a *cni.Attachment) error {
	return n.do(ctx, "Detach", func() { delete(n.attached, a.Key) })
}

func (n *network) Status(ctx context.Context) error { return n.do(ctx, "Status", func() {}) }

func (n *network) GC(ctx context.Context, keep []*cni.Attachment) error {
	return n.do(ctx, "GC", func() {
		maps.DeleteFunc(n.attached, func(k pod.Key, _ struct{}) bool {
			return !slices.ContainsFunc(keep, func(a *cni.Attachment) bool { return a.Key == k })
		})
	})
}

// world is a machine: what survives a crash of the server.
type world struct {
	t      *testing.T
	dir    string
	boot   string
	engine *fake.Engine
	images *fake.Images
	net    *network
	opts   lifecycle.Options
}

func newWorld(t *testing.T, faults ...fake.Option) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), boot: "boot-1", engine: fake.New(faults...), images: fake.NewImages(image), net: newNetwork()}
	if _, err := w.images.Pull(t.Context(), &pod.Pull{Ref: image}); err != nil {
		t.Fatal(err)
	}
	w.opts = lifecycle.Options{
		Engines:  map[string]engine.Engine{"fake": w.engine},
		Images:   map[string]engine.Images{"fake": w.images},
		Handlers: map[string]string{"": "fake"},
		Network:  w.net,
		StateDir: filepath.Join(w.dir, "state"),
		Log:      slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	return w
}

// boots returns a server that has recovered; it is closed when the test ends.
func (w *world) start(change ...func(*lifecycle.Options)) *lifecycle.Manager {
	w.t.Helper()
	journal, err := store.Open(filepath.Join(w.dir, "journal"), w.boot)
	if err != nil {
		w.t.Fatal(err)
	}
	opts := w.opts
	opts.Journal = journal
	for _, c := range change {
		c(&opts)
	}
	m, err := lifecycle.New(opts)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := m.Recover(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.stop(m) })
	return m
}

func (w *world) stop(m *lifecycle.Manager) {
	if err := m.Close(context.Background()); err != nil {
		w.t.Error(err)
	}
}

// left lists what is left on the machine of any pod.
func (w *world) left() []string {
	w.t.Helper()
	all := w.engine.Everything()
	w.net.mu.Lock()
	for k := range w.net.attached {
		all = append(all, "network of "+string(k))
	}
	w.net.mu.Unlock()
	for _, pattern := range []string{"journal/pods/*", "journal/containers/*", "state/pods/*", "state/checkpoints/*"} {
		files, err := filepath.Glob(filepath.Join(w.dir, pattern))
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, files...)
	}
	return all
}

func (w *world) mustBeEmpty(when string) {
	w.t.Helper()
	if left := w.left(); len(left) > 0 {
		w.t.Errorf("left behind %s: %v", when, left)
	}
}

func sandbox(name string) *pod.SandboxSpec {
	return &pod.SandboxSpec{
		Metadata:   pod.Metadata{Name: name, UID: "uid-" + name, Namespace: "default"},
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceContainer, IPC: pod.NamespacePod},
	}
}

func container(name string, words ...string) *pod.ContainerSpec {
	return &pod.ContainerSpec{
		Name: name, ImageID: image, Command: words,
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceContainer, IPC: pod.NamespacePod},
	}
}

// runPod runs a pod that must come up.
func runPod(t *testing.T, m *lifecycle.Manager, name string) string {
	t.Helper()
	id, err := m.RunPod(t.Context(), sandbox(name))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// runContainer creates and starts a container that must come up.
func runContainer(t *testing.T, m *lifecycle.Manager, podID, name string, words ...string) string {
	t.Helper()
	id := createContainer(t, m, podID, name, words...)
	if err := m.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return id
}

func createContainer(t *testing.T, m *lifecycle.Manager, podID, name string, words ...string) string {
	t.Helper()
	id, err := m.CreateContainer(t.Context(), podID, container(name, words...))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func stateOf(t *testing.T, m *lifecycle.Manager, id string) *pod.Container {
	t.Helper()
	c, err := m.Container(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func keyOf(t *testing.T, m *lifecycle.Manager, id string) pod.Key {
	t.Helper()
	return stateOf(t, m, id).Spec.Key
}

func podState(m *lifecycle.Manager, id string) string {
	sb, err := m.Pod(context.Background(), id)
	if err != nil {
		return fmt.Sprint(err)
	}
	return string(sb.State)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
