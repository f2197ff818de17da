// Package netns makes the namespaces that the containers of a pod share (user, network, IPC and UTS) and
// keeps them alive without a process, by bind mounts. It also runs functions inside a network
// namespace, on threads that are thrown away: no thread of the program ever changes its namespaces.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// Spec says which namespaces to make and where to pin each. An empty path leaves the node's.
type Spec struct {
	Net string
	IPC string
	UTS string
	// Hostname is set in the new UTS namespace; it needs UTS.
	Hostname string
	// Sysctls are namespaced kernel parameters, with dots or slashes, set before anything is pinned.
	Sysctls map[string]string
	// User is where a new user namespace is pinned, which owns the others; UIDs and GIDs are what it maps.
	User       string          `json:",omitempty"`
	UIDs, GIDs []pod.IDMapping `json:",omitempty"`
}

// Create makes the namespaces, prepares them (hostname, loopback up, sysctls) and pins them. A file
// that exists where a namespace is to be pinned is replaced. Net is pinned last, so that a pinned
// network namespace means that all of it was done. On an error nothing stays pinned.
//
// A sysctl that is not namespaced, or belongs to a namespace that is not made, is
// errdefs.ErrInvalidArgument.
func Create(s Spec) error {
	if err := checkSysctls(s); err != nil {
		return err
	}
	flags := 0
	for _, p := range s.pins() {
		flags |= p.flag
	}
	if flags == 0 {
		return nil
	}
	if s.User != "" {
		return onThread(func() error { return createOwned(s, flags) })
	}
	return onThread(func() error {
		if err := unix.Unshare(flags); err != nil {
			return fmt.Errorf("make namespaces: %w", err)
		}
		if err := prepare(s); err != nil {
			return err
		}
		return pinAll("/proc/thread-self/ns", s.pins())
	})
}

// Share makes dir, where network namespaces are to be pinned, a shared mount, as `ip netns add` does
// when it first runs. If it did so later, it would mount the directory over itself, and no pin that
// was there before could be removed any more.
func Share(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("directory of network namespaces: %w", err)
	}
	err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // no mount yet
		if err = unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", dir, err)
	}
	return nil
}

// Remove unpins every namespace of s, busy or not; the kernel frees one when its last process is
// gone. What is absent is no error. All are unpinned at once: the kernel lets each caller of umount
// wait until nobody can be walking through the mount, and they wait together.
func Remove(s Spec) error {
	pins := s.pins()
	errs := make([]error, len(pins))
	var all sync.WaitGroup
	for i, p := range pins {
		all.Go(func() { errs[i] = Unpin(p.path) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// Pinned says whether every namespace of s is pinned.
func (s Spec) Pinned() bool {
	for _, p := range s.pins() {
		if !IsPinned(p.path) {
			return false
		}
	}
	return true
}

// IsPinned says whether a namespace is mounted at path.
func IsPinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Unpin removes the namespace mounted at path, and the file below it. Absent is no error.
func Unpin(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unpin namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin namespace: %w", err)
	}
	return nil
}

// Do runs fn inside the network namespace at path and returns its error. It runs on a thread of its
// own that ends with it: processes and sockets that fn itself makes are in the namespace, those of
// goroutines that it starts are not. An absent namespace is errdefs.ErrNotFound.
func Do(path string, fn func() error) error {
	ns, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("network namespace %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, err)
		}
		return fn()
	})
}

// pin is one namespace of a Spec. name is its entry in /proc/PID/ns.
type pin struct {
	path string
	name string
	flag int
}

func (s Spec) pins() []pin {
	all := []pin{
		{s.User, "user", unix.CLONE_NEWUSER},
		{s.IPC, "ipc", unix.CLONE_NEWIPC},
		{s.UTS, "uts", unix.CLONE_NEWUTS},
		{s.Net, "net", unix.CLONE_NEWNET},
	}
	var wanted []pin
	for _, p := range all {
		if p.path != "" {
			wanted = append(wanted, p)
		}
	}
	return wanted
}

func prepare(s Spec) error {
	if s.UTS != "" && s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", s.Hostname, err)
		}
	}
	if s.Net != "" {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("loopback up: %w", err)
		}
	}
	return s.applySysctls()
}

// LoopbackUp brings up the loopback of a network namespace that somebody else made, such as /proc/PID/ns/net.
func LoopbackUp(path string) error {
	if err := Do(path, loopbackUp); err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	return nil
}

func loopbackUp() error {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(sock) }()
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, lo)
}

// pinAll pins the namespaces that the directory from, such as /proc/PID/ns, shows.
func pinAll(from string, pins []pin) error {
	for i, p := range pins {
		if err := Pin(filepath.Join(from, p.name), p.path); err != nil {
			for _, done := range pins[:i+1] {
				err = errors.Join(err, Unpin(done.path))
			}
			return err
		}
	}
	return nil
}

// Pin mounts the namespace that source names, such as /proc/PID/ns/pid, at path, and replaces what
// is there.
func Pin(source, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("pin namespace: %w", err)
	}
	if err := Unpin(path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("pin namespace: %w", err)
	}
	_ = f.Close()
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin namespace %s at %s: %w", source, path, err)
	}
	return nil
}

// onThread runs fn on a thread that ends with it. The main thread is never taken: it stands for the
// whole process in /proc.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			defer runtime.UnlockOSThread()
			result <- onThread(fn)
			return
		}
		result <- fn()
	}()
	return <-result
}
