// Package lab gives a test binary a machine of its own: private mount, network, PID, IPC and UTS
// namespaces, a /run of its own, a loopback that is up, and no cgroup v2 hierarchy beside v1 (which
// crun refuses). Whatever a test leaves behind dies with it. Only tests import it.
package lab

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const stage = "GANTRY_LAB_STAGE"

// Main runs m inside the lab; TestMain calls it and nothing else:
//
//	func TestMain(m *testing.M) { lab.Main(m) }
//
// It needs root and fails loudly without it.
func Main(m *testing.M) {
	switch os.Getenv(stage) {
	case "":
		os.Exit(outside())
	case "init":
		os.Exit(initProcess())
	}
	os.Exit(m.Run())
}

// outside starts the test binary again as the first process of new namespaces.
func outside() int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make namespaces, mounts and containers: they need root")
		return 1
	}
	// Pdeathsig fires when the thread that started the child ends, not the process.
	runtime.LockOSThread()
	cmd := again("init")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  unix.SIGKILL,
	}
	return run(cmd)
}

// initProcess prepares the namespaces, starts the tests and reaps orphans until they end.
func initProcess() int {
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	cmd := again("tests")
	if err := startPassing(cmd); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			fmt.Fprintln(os.Stderr, "lab: wait:", err)
			return 1
		case pid == cmd.Process.Pid && ws.Exited():
			return ws.ExitStatus()
		case pid == cmd.Process.Pid && ws.Signaled():
			return 128 + int(ws.Signal())
		}
	}
}

func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	if err := unix.Unmount("/sys/fs/cgroup/unified", unix.MNT_DETACH); err != nil &&
		!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount cgroup v2 beside v1: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	// sysfs shows the network devices of the namespace it was mounted in.
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	return nil
}

func again(next string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stage+"="+next)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

// startPassing starts cmd and passes on to it the signals that ask to end.
func startPassing(cmd *exec.Cmd) error {
	sigs := make(chan os.Signal, 4)
	signal.Notify(sigs, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		for s := range sigs {
			_ = cmd.Process.Signal(s)
		}
	}()
	return nil
}

// run runs cmd, passes on the signals that ask it to end, and returns its exit code.
func run(cmd *exec.Cmd) int {
	if err := startPassing(cmd); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		return 1
	}
	return 0
}

// Cgroup returns a cgroup path nobody else uses, below the cgroup mount, and removes what is left
// of it in every hierarchy when the test ends. A test that leaves a process there has failed: its cgroup
// would stay on the machine.
func Cgroup(t testing.TB) string {
	t.Helper()
	return cgroup(t, endTime)
}

// cgroup is Cgroup with the time that what was killed may take to leave.
func cgroup(t testing.TB, most time.Duration) string {
	t.Helper()
	path := "/gantry-test-" + rand.Text()[:8] + sanitize(t.Name()) // two labs have the same pids, and one set of cgroups
	t.Cleanup(func() {
		if left := removeCgroup(path, most); len(left) > 0 {
			t.Errorf("left on the machine: %s", strings.Join(left, "; "))
		}
	})
	return path
}
