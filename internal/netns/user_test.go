package netns_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/netns"
	"gantry/internal/pod"
)

var ids = []pod.IDMapping{{ContainerID: 0, HostID: 200000, Length: 65536}}

func TestUserNamespaceOwnsTheOthers(t *testing.T) {
	s := specIn(t)
	s.User, s.UIDs, s.GIDs = filepath.Join(t.TempDir(), "user"), ids, ids
	s.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shmmax": "4096000"}
	if err := netns.Create(s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Remove(s); err != nil {
			t.Error(err)
		}
	})
	if !s.Pinned() {
		t.Fatal("not everything is pinned")
	}
	if got := strings.Join(strings.Fields(inside(t, s, "nsenter", "--user="+s.User, "cat", "/proc/self/uid_map")), " "); got != "0 200000 65536" {
		t.Errorf("uid_map %q", got)
	}
	for _, tt := range []struct{ command, want string }{
		{"hostname", "web-0"},
		{"cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "80"},
		{"cat /proc/sys/kernel/shmmax", "4096000"},
		{"ip -o link show lo up | grep -o UP | head -n 1", "UP"},
		// Only root of the owner may do this.
		{"nsenter --user=" + s.User + " sh -c 'hostname web-1; hostname'", "web-1"},
	} {
		if got := inside(t, s, "sh", "-c", tt.command); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.command, got, tt.want)
		}
	}
}

func TestUserNamespaceThatCannotBeLeavesNothing(t *testing.T) {
	for rule, mapping := range map[string][]pod.IDMapping{
		"no ids":               nil,
		"ids mapped twice":     {ids[0], ids[0]},
		"root inside has none": {{ContainerID: 1, HostID: 200000, Length: 10}},
	} {
		t.Run(rule, func(t *testing.T) {
			s := specIn(t)
			s.User, s.UIDs, s.GIDs = filepath.Join(t.TempDir(), "user"), mapping, mapping
			s.Sysctls = map[string]string{"kernel.shmmax": "4096000"}
			if err := netns.Create(s); err == nil {
				t.Error("the namespaces were made")
			}
			for _, path := range []string{s.User, s.Net, s.IPC, s.UTS} {
				if netns.IsPinned(path) {
					t.Errorf("%s is pinned", path)
				}
			}
		})
	}
	s := specIn(t)
	s.User = filepath.Join(t.TempDir(), "user")
	if err := netns.Create(s); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no ids: %v", err)
	}
}

func TestHostID(t *testing.T) {
	for inside, want := range map[uint32]uint32{0: 200000, 65535: 265535} {
		if got, ok := netns.HostID(ids, inside); !ok || got != want {
			t.Errorf("HostID(%d) = %d, %v", inside, got, ok)
		}
	}
	if got, ok := netns.HostID(ids, 65536); ok {
		t.Errorf("HostID(65536) = %d", got)
	}
}
