package kube

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"

	"gantry/test/node"
)

// machine prepares the namespaces of a node: a /run of its own, the directories that programs have
// at fixed places bound into the node's root, and mounts that may propagate. A disk of its own and another
// boot id are there where they are named.
const machine = `set -e
root=$1 disk=$2 boot=$3
mount --make-rshared /
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
mkdir -p /run/netns /run/lock "$root"/{gantry,kubelet,pods,containers} /var/lib/kubelet /var/log/pods /var/log/containers
if [[ $disk ]]; then
  mkdir -p "$root"/disk
  mount -o loop "$disk" "$root"/disk
  for dir in gantry kubelet; do
    mkdir -p "$root/disk/$dir"
    mount --bind "$root/disk/$dir" "$root/$dir"
  done
fi
mount --bind "$root"/kubelet /var/lib/kubelet
mount --make-rshared /var/lib/kubelet
mount --bind "$root"/pods /var/log/pods
mount --bind "$root"/containers /var/log/containers
if [[ $boot ]]; then mount --bind "$boot" /proc/sys/kernel/random/boot_id; fi
ip link set lo up
echo ready
exec sleep infinity`

func (n *Node) startMachine() {
	t := n.c.t
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "--net", "--propagation", "private", "bash", "-c", machine, "machine", n.Root, n.disk(), n.bootFile())
	out, err := cmd.StdoutPipe()
	n.c.check("machine", err)
	cmd.Stderr = os.Stderr
	n.c.check("machine", cmd.Start())
	n.holder = cmd
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	answer := make([]byte, len("ready"))
	if _, err := out.Read(answer); err != nil || string(answer) != "ready" {
		t.Fatalf("the machine of %s was not made: %q, %v", n.Name, answer, err)
	}
}

// disk returns the file that is the node's disk, "" where it shares the cluster's.
func (n *Node) disk() string {
	n.c.t.Helper()
	if n.c.options.Disk == 0 {
		return ""
	}
	path := filepath.Join(n.c.Root, n.Name+".img")
	if n.boots > 0 {
		return path
	}
	for _, command := range [][]string{
		{"truncate", "-s", strconv.Itoa(n.c.options.Disk) + "M", path},
		{"mkfs.ext4", "-q", "-m", "0", path},
	} {
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		if err != nil {
			n.c.t.Fatalf("the node's disk: %v: %s", err, out)
		}
	}
	return path
}

// bootFile returns a file with the boot's id, "" for the first boot, whose id is the machine's.
func (n *Node) bootFile() string {
	n.c.t.Helper()
	if n.boots == 0 {
		return ""
	}
	return n.c.write(n.Name+"/boot_id", n.BootID()+"\n")
}

// BootID is what the kernel says after a Reboot.
func (n *Node) BootID() string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n.boots) }

// Command is a command in the node's namespaces, not started.
func (n *Node) Command(args ...string) *exec.Cmd {
	target := strconv.Itoa(n.holder.Process.Pid)
	return exec.Command("nsenter", append([]string{"--target", target, "--mount", "--net", "--"}, args...)...)
}

// Run runs a command in the node's namespaces and returns what it prints.
func (n *Node) Run(args ...string) (string, error) {
	out, err := n.Command(args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Reboot ends everything on the node at once, as a power cut does, and boots it anew: without a process,
// a mount, a network device or a cgroup of before, with an empty /run and another boot id. What was on
// its disk stays.
func (n *Node) Reboot() {
	n.c.t.Helper()
	for _, p := range []*Process{n.Proxy, n.Kubelet, n.Gantry} {
		p.Stop(syscall.SIGKILL)
	}
	for _, b := range n.below {
		b.Stop(syscall.SIGKILL)
	}
	n.killLeft()
	node.KillCgroup(n.cgroup)
	n.removeCgroups()
	n.c.ip("link", "delete", n.port())
	_ = n.holder.Process.Kill()
	_ = n.holder.Wait()
	n.boots++
	n.startMachine()
	n.c.plug(n)
	n.c.makeCgroup(n.cgroup)
	for _, b := range n.below {
		b.Start()
		n.await(b.Process, b.answers)
	}
	n.Gantry.Start()
	n.waitSocket()
	n.Kubelet.Start()
	n.Proxy.Start()
	n.c.connectNodes()
}

// removeCgroups removes the node's cgroups in every hierarchy. The processes in them were killed, and leave
// when they are reaped.
func (n *Node) removeCgroups() {
	n.c.t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	n.c.check("cgroup mounts", err)
	deadline := time.After(readyTime)
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		var left []error
		for _, m := range mounts {
			left = append(left, removeTree(filepath.Join(m.Mountpoint, n.cgroup))...)
		}
		if len(left) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			n.c.t.Fatalf("cgroups of %s stay: %v", n.Name, left)
		}
	}
}

func removeTree(top string) (left []error) {
	var dirs []string
	_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, dir := range slices.Backward(dirs) {
		if err := os.Remove(dir); err != nil {
			left = append(left, err)
		}
	}
	return left
}
