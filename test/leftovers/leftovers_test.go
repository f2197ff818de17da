package leftovers_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/lab"
	"gantry/test/leftovers"
)

func TestMain(m *testing.M) { lab.Main(m) }

// Each case makes one thing that a pod could leave behind; the comparison must name it.
func TestSinceNamesWhatWasLeft(t *testing.T) {
	dir := t.TempDir()
	cgroup := lab.Cgroup(t)
	scope := leftovers.Scope{Dirs: []string{dir}, Cgroups: []string{cgroup}, Ignore: []string{dir + "/*.log"}}
	for _, tc := range []struct {
		name, want string
		leave      func(t *testing.T)
	}{
		{"a network namespace", "netns lost", func(t *testing.T) {
			run(t, "ip", "netns", "add", "lost")
			t.Cleanup(func() { undo("ip", "netns", "del", "lost") })
		}},
		{"a link", "link veth lost0", func(t *testing.T) {
			run(t, "ip", "link", "add", "lost0", "type", "veth", "peer", "name", "lost1")
			t.Cleanup(func() { undo("ip", "link", "del", "lost0") })
		}},
		{"a firewall rule", "nftables table inet lost {", func(t *testing.T) {
			run(t, "nft", "add", "table", "inet", "lost")
			t.Cleanup(func() { undo("nft", "delete", "table", "inet", "lost") })
		}},
		{"a mount", "mount tmpfs " + filepath.Join(dir, "mnt"), func(t *testing.T) {
			mnt := filepath.Join(dir, "mnt")
			if err := os.Mkdir(mnt, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("lost", mnt, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) })
		}},
		{"a cgroup", "cgroup ", func(t *testing.T) {
			for _, c := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/pids"} {
				if _, err := os.Stat(filepath.Join(c, "cgroup.procs")); err == nil {
					if err = os.Mkdir(filepath.Join(c, cgroup), 0o755); err != nil {
						t.Fatal(err)
					}
				}
			}
		}},
		{"a process", "process ", func(t *testing.T) {
			cmd := exec.Command("cat")
			if _, err := cmd.StdinPipe(); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		}},
		{"a file", "file " + filepath.Join(dir, "lost"), func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(dir, "lost"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before, err := leftovers.Take(t.Context(), scope)
			if err != nil {
				t.Fatal(err)
			}
			tc.leave(t)
			left, err := leftovers.Settle(t.Context(), scope, before, time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(left, func(s string) bool { return strings.HasPrefix(s, tc.want) }) {
				t.Errorf("left %q, want one that begins with %q", left, tc.want)
			}
		})
	}
}

func TestIgnoredFilesDoNotCount(t *testing.T) {
	dir := t.TempDir()
	scope := leftovers.Scope{Dirs: []string{dir}, Ignore: []string{dir + "/*.log"}}
	before, err := leftovers.Take(t.Context(), scope)
	if err != nil {
		t.Fatal(err)
	}
	if err = os.WriteFile(filepath.Join(dir, "server.log"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if left, err := leftovers.Settle(t.Context(), scope, before, leftovers.Patience); err != nil || len(left) > 0 {
		t.Errorf("left %v, error %v", left, err)
	}
}

// undo gives the next run the machine that this one had.
func undo(args ...string) { _ = exec.Command(args[0], args[1:]...).Run() }

func run(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
