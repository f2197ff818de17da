package stats

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/lab"
	"gantry/internal/netns"
)

func TestMain(m *testing.M) { lab.Main(m) }

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// bridged makes a network namespace with an interface, pinned at the path it returns.
func bridged(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ns")
	if err := netns.Create(netns.Spec{Net: path}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netns.Unpin(path) })
	err := netns.Do(path, func() error {
		return exec.CommandContext(t.Context(), "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1").Run()
	})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestNetwork(t *testing.T) {
	path := bridged(t)
	inside := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := netns.Do(path, inside.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inside.Process.Kill(); _ = inside.Wait() })
	for rule, pids := range map[string][]int{
		"through a process that is inside":             {inside.Process.Pid},
		"without a process":                            nil,
		"a process in another namespace is not asked":  {os.Getpid()},
		"a process that is gone leads to the next one": {1 << 22, inside.Process.Pid},
	} {
		t.Run(rule, func(t *testing.T) {
			u, err := New(nil, nil).Network(path, pids)
			if err != nil {
				t.Fatal(err)
			}
			if len(u.Interfaces) != 2 || u.At.IsZero() {
				t.Fatalf("got %+v, want eth0 and eth1", u)
			}
			for _, i := range u.Interfaces {
				if i.Name != "eth0" && i.Name != "eth1" {
					t.Errorf("interface %q", i.Name)
				}
			}
		})
	}
	if _, err := New(nil, nil).Network(path+".gone", nil); !errdefs.IsNotFound(err) {
		t.Errorf("a namespace that is gone: %v", err)
	}
}

func TestTasksOfThisProcess(t *testing.T) {
	before := tasks([]int{os.Getpid()}, os.Getpid())
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	after := tasks([]int{os.Getpid(), 1 << 22}, os.Getpid())
	if after.Sockets <= before.Sockets || after.Descriptors <= before.Descriptors {
		t.Errorf("a socket more: before %+v, after %+v", before, after)
	}
	// This process runs, sleeps, or waits for a disk.
	if s := after.States; s.Running+s.Sleeping+s.Uninterruptible != 1 || after.Processes != 2 || after.OpenFilesMax == 0 {
		t.Errorf("got %+v", after)
	}
}

func BenchmarkNetwork(b *testing.B) {
	path := filepath.Join(b.TempDir(), "ns")
	if err := netns.Create(netns.Spec{Net: path}); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = netns.Unpin(path) }()
	inside := exec.CommandContext(b.Context(), "sleep", "1000")
	if err := netns.Do(path, inside.Start); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = inside.Process.Kill(); _ = inside.Wait() }()
	for name, pids := range map[string][]int{"with a process inside": {inside.Process.Pid}, "with none": nil} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := New(nil, nil).Network(path, pids); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
