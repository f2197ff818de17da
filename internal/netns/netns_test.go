package netns_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"gantry/internal/lab"
	"gantry/internal/netns"
)

func TestMain(m *testing.M) { lab.Main(m) }

func specIn(t *testing.T) netns.Spec {
	t.Helper()
	dir := t.TempDir()
	s := netns.Spec{
		Net: filepath.Join(dir, "netns", "pod"), IPC: filepath.Join(dir, "ipc"), UTS: filepath.Join(dir, "uts"),
		Hostname: "web-0",
	}
	t.Cleanup(func() {
		if err := netns.Remove(s); err != nil {
			t.Errorf("remove: %v", err)
		}
	})
	return s
}

// inside runs a command in the namespaces of s.
func inside(t *testing.T, s netns.Spec, args ...string) string {
	t.Helper()
	args = append([]string{"--net=" + s.Net, "--ipc=" + s.IPC, "--uts=" + s.UTS, "--"}, args...)
	out, err := exec.CommandContext(t.Context(), "nsenter", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("nsenter %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestCreatePreparesAndPins(t *testing.T) {
	s := specIn(t)
	s.Sysctls = map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "80",
		"net/ipv4/ping_group_range":           "0 7",
		"kernel.shmmax":                       "4096000",
		"fs.mqueue.msg_max":                   "17",
	}
	host, _ := os.Hostname()
	if err := netns.Create(s); err != nil {
		t.Fatal(err)
	}
	if !s.Pinned() {
		t.Error("not pinned after Create")
	}
	if got := inside(t, s, "uname", "-n"); got != "web-0" {
		t.Errorf("hostname %q", got)
	}
	if got := inside(t, s, "ip", "-o", "link", "show", "lo"); !strings.Contains(got, "UP") {
		t.Errorf("loopback is not up: %s", got)
	}
	for path, want := range map[string]string{
		"net/ipv4/ip_unprivileged_port_start": "80", "net/ipv4/ping_group_range": "0\t7",
		"kernel/shmmax": "4096000", "fs/mqueue/msg_max": "17",
	} {
		if got := inside(t, s, "cat", "/proc/sys/"+path); got != want {
			t.Errorf("%s = %q, want %q", path, got, want)
		}
	}
	if now, _ := os.Hostname(); now != host {
		t.Errorf("the node's hostname became %q", now)
	}
	if data, _ := os.ReadFile("/proc/sys/kernel/shmmax"); strings.TrimSpace(string(data)) == "4096000" {
		t.Error("the node's kernel.shmmax changed")
	}
}

func TestCreateAgainReplacesAndRemoveTwiceIsNoError(t *testing.T) {
	s := specIn(t)
	for range 2 {
		if err := netns.Create(s); err != nil {
			t.Fatal(err)
		}
	}
	holder := exec.CommandContext(t.Context(), "nsenter", "--net="+s.Net, "sleep", "100")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := netns.Remove(s); err != nil {
			t.Errorf("remove while in use: %v", err)
		}
	}
	_ = holder.Process.Kill()
	_ = holder.Wait()
	if _, err := os.Lstat(s.Net); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind %s: %v", s.Net, err)
	}
	if netns.IsPinned(s.IPC) || s.Pinned() {
		t.Error("still pinned after Remove")
	}
}

func TestCreateUndoesAfterFailure(t *testing.T) {
	s := specIn(t)
	blocker := filepath.Dir(s.Net)
	if err := os.WriteFile(blocker, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := netns.Create(s); err == nil {
		t.Fatal("created a namespace below a file")
	}
	if err := os.Remove(blocker); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(s.IPC)); len(left) > 0 {
		t.Errorf("left behind %v", left)
	}
}

func TestCreateWithoutNamespacesDoesNothing(t *testing.T) {
	if err := netns.Create(netns.Spec{}); err != nil {
		t.Error(err)
	}
}

func TestSysctlsThatAreRefused(t *testing.T) {
	tests := map[string]struct {
		name, value string
		change      func(*netns.Spec)
	}{
		"not namespaced":             {name: "kernel.panic", value: "1"},
		"not namespaced, of vm":      {name: "vm.swappiness", value: "1"},
		"network of the node":        {name: "net.ipv4.ip_forward", value: "1", change: func(s *netns.Spec) { s.Net = "" }},
		"IPC of the node":            {name: "kernel.shmmax", value: "1", change: func(s *netns.Spec) { s.IPC = "" }},
		"leaves the tree":            {name: "net/../kernel/panic", value: "1"},
		"unknown":                    {name: "net.ipv4.no_such_thing", value: "1"},
		"a value the kernel refuses": {name: "net.ipv4.ip_forward", value: "many"},
	}
	for rule, tt := range tests {
		t.Run(rule, func(t *testing.T) {
			s := specIn(t)
			s.Sysctls = map[string]string{tt.name: tt.value}
			if tt.change != nil {
				tt.change(&s)
			}
			err := netns.Create(s)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.name) {
				t.Errorf("error %v, want an invalid argument that names %s", err, tt.name)
			}
			if s.Net != "" && netns.IsPinned(s.Net) {
				t.Error("pinned a namespace")
			}
		})
	}
}

func TestDoEntersOnlyForTheFunction(t *testing.T) {
	s := specIn(t)
	if err := netns.Create(s); err != nil {
		t.Fatal(err)
	}
	before := netOf(t)
	var inside string
	var l net.Listener
	err := netns.Do(s.Net, func() (err error) {
		inside, err = os.Readlink("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if inside == before || netOf(t) != before {
		t.Errorf("namespace before %s, inside %s, after %s", before, inside, netOf(t))
	}
	if c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String()); err == nil {
		_ = c.Close()
		t.Error("a listener of the pod answers on the node")
	}
	_ = l.Close()

	refused := errors.New("refused")
	if err := netns.Do(s.Net, func() error { return refused }); !errors.Is(err, refused) {
		t.Errorf("error %v is not the function's", err)
	}
	if err := netns.Do(s.Net+"-absent", func() error { return nil }); !errdefs.IsNotFound(err) {
		t.Errorf("absent namespace: %v", err)
	}
}

func netOf(t *testing.T) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestIsPinnedKnowsAFileFromANamespace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "half-made")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if netns.IsPinned(path) {
		t.Error("an ordinary file counts as pinned")
	}
	if err := netns.Unpin(path); err != nil {
		t.Error(err)
	}
	if err := unix.Access(path, unix.F_OK); !errors.Is(err, unix.ENOENT) {
		t.Errorf("half-made pin stays: %v", err)
	}
}

func TestPinsCanBeRemovedAfterIPNetnsCame(t *testing.T) {
	s := specIn(t)
	dir := filepath.Dir(s.Net)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	for range 2 {
		if err := netns.Share(dir); err != nil {
			t.Fatal(err)
		}
	}
	if err := netns.Create(s); err != nil {
		t.Fatal(err)
	}
	// What `ip netns add` does first; where it fails, it binds the directory to itself.
	if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		t.Fatalf("the directory is no shared mount: %v", err)
	}
	if err := netns.Remove(s); err != nil {
		t.Fatal(err)
	}
	if mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir)); err != nil || len(mounts) != 1 {
		t.Errorf("%d mounts, %v, want the directory's one", len(mounts), err)
	}
}
