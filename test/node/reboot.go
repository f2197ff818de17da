package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gantry/internal/bridge"
)

const bootID = "/proc/sys/kernel/random/boot_id"

// Reboot leaves the machine as a power cut and a new boot would: no process, no mount, no network,
// nothing in the state directory, another boot id. The server is not started.
func (n *Node) Reboot() {
	n.t.Helper()
	n.Kill()
	n.killKeeper()
	KillCgroup(n.Cgroup)
	for _, dir := range []string{n.State, n.Lib, "/run/netns"} {
		unmountBelow(dir)
	}
	for _, dir := range []string{n.State, "/run/netns"} {
		n.empty(dir)
	}
	links, err := bridge.Whole(netlink.LinkList)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == "bridge" || l.Type() == "veth" {
			_ = netlink.LinkDel(l) // the other end of a pair may have taken it along
		}
	}
	n.newBootID()
}

func (n *Node) empty(dir string) {
	n.t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		n.t.Fatal(err)
	}
	for _, e := range entries {
		if err = os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			n.t.Fatal(err)
		}
	}
}

func (n *Node) newBootID() {
	n.t.Helper()
	old := strings.TrimSpace(ReadFile(n.t, bootID))
	last := "0"
	if strings.HasSuffix(old, last) {
		last = "1"
	}
	file := filepath.Join(n.Root, "boot_id")
	_ = unix.Unmount(bootID, unix.MNT_DETACH) // of an earlier reboot
	if err := os.WriteFile(file, fmt.Appendln(nil, old[:len(old)-1]+last), 0o600); err != nil {
		n.t.Fatal(err)
	}
	if err := unix.Mount(file, bootID, "", unix.MS_BIND, ""); err != nil {
		n.t.Fatalf("another boot id: %v", err)
	}
	n.t.Cleanup(func() { _ = unix.Unmount(bootID, unix.MNT_DETACH) })
}
