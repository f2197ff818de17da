package ocispec_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/lab"
	"gantry/internal/ocispec"
	"gantry/internal/pod"
)

func TestMain(m *testing.M) { lab.Main(m) }

func TestNodeFacts(t *testing.T) {
	n, err := ocispec.NodeFacts()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(n.Bounding, "CAP_SYS_ADMIN") || n.Hostname == "" {
		t.Errorf("facts %+v", n)
	}
}

func TestResolveMountsFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	asked := []pod.Mount{{ContainerPath: "/m", HostPath: filepath.Join(dir, "link")}, {ContainerPath: "/i", Image: "x"}}
	got, err := ocispec.ResolveMounts(asked)
	if err != nil || got[0].HostPath != dir || got[1].Image != "x" {
		t.Errorf("mounts %+v, %v", got, err)
	}
	if asked[0].HostPath == dir {
		t.Error("the client's spec was changed")
	}
}

func TestPropagationNeedsAMountThatHasIt(t *testing.T) {
	shared, slave, private := t.TempDir(), t.TempDir(), t.TempDir()
	for dir, flags := range map[string]uintptr{shared: unix.MS_SHARED, slave: unix.MS_SHARED, private: unix.MS_PRIVATE} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		if err := unix.Mount("", dir, "", flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(slave, slave, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(slave, unix.MNT_DETACH) })
	if err := unix.Mount("", slave, "", unix.MS_SLAVE, ""); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		source      string
		propagation pod.Propagation
		refused     bool
	}{
		"private works anywhere":            {private, pod.PropagationPrivate, false},
		"slave from a shared mount":         {shared, pod.PropagationHostToContainer, false},
		"slave from a slave mount":          {slave, pod.PropagationHostToContainer, false},
		"slave from a private mount":        {private, pod.PropagationHostToContainer, true},
		"bidirectional from a shared mount": {shared, pod.PropagationBidirectional, false},
		"bidirectional from a slave mount":  {slave, pod.PropagationBidirectional, true},
		"a word that is none":               {shared, "sideways", true},
	}
	for rule, tt := range tests {
		t.Run(rule, func(t *testing.T) {
			_, err := ocispec.ResolveMounts([]pod.Mount{{ContainerPath: "/m", HostPath: tt.source, Propagation: tt.propagation}})
			if errdefs.IsInvalidArgument(err) != tt.refused || (err != nil) != tt.refused {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestSourcesThatAreRefused(t *testing.T) {
	for rule, path := range map[string]string{"absent": "/no/such/source", "relative": "tmp", "empty": ""} {
		_, err := ocispec.ResolveMounts([]pod.Mount{{ContainerPath: "/m", HostPath: path}})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", rule, err)
		}
	}
}

func TestResolveDevices(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "bus"), 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "bus", "one"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	got, err := ocispec.ResolveDevices(&pod.ContainerSpec{Devices: []pod.Device{
		{HostPath: link, ContainerPath: "/dev/x", Permissions: "r"},
		{HostPath: filepath.Join(dir, "bus"), ContainerPath: "/dev/bus", Permissions: "rw"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Path != "/dev/x" || got[0].Minor != 3 || got[0].Access != "r" || got[1].Path != "/dev/bus/one" || got[1].Minor != 5 {
		t.Errorf("devices %+v", got)
	}
	all, err := ocispec.ResolveDevices(&pod.ContainerSpec{Security: pod.Security{Privileged: true}})
	if err != nil || !slices.ContainsFunc(all, func(d ocispec.Device) bool { return d.Path == "/dev/null" }) {
		t.Errorf("privileged: %d devices, %v", len(all), err)
	}
	for rule, d := range map[string]pod.Device{
		"absent":          {HostPath: "/dev/no-such-device"},
		"not a device":    {HostPath: os.Args[0]},
		"bad permissions": {HostPath: "/dev/null", Permissions: "rwx"},
	} {
		_, err := ocispec.ResolveDevices(&pod.ContainerSpec{Devices: []pod.Device{d}})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), d.HostPath) {
			t.Errorf("%s: %v", rule, err)
		}
	}
}
