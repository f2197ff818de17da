// Package sysctl reads and writes kernel parameters by their paths below /proc/sys.
package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree is /proc/sys as the calling thread's namespaces have it. The kernel remembers who was seen in it:
// what /proc/sys/net holds for a network namespace lies in one chain with what it holds for every other
// that was looked at, and whoever looks for one's own walks along the chain, the node's own processes too.
// So each Tree is of a procfs of its own, and one that was used in pods' namespaces is not used for long.
type Tree struct{ proc *os.File }

// Open returns a Tree, which is closed when nobody has it any more if not before. Where the kernel makes no procfs of its own for it (before 5.8), or
// does not let this process, it is the one at /proc.
func Open() (*Tree, error) {
	if proc, err := mount(); err == nil {
		return newTree(proc), nil
	}
	proc, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /proc: %w", err)
	}
	return newTree(proc), nil
}

func newTree(proc int) *Tree { return &Tree{os.NewFile(uintptr(proc), "/proc")} }

// mount makes a procfs that is mounted nowhere.
func mount() (int, error) {
	made, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(made) }()
	if err := unix.FsconfigCreate(made); err != nil {
		return -1, err
	}
	return unix.Fsmount(made, unix.FSMOUNT_CLOEXEC, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC)
}

// Close gives the tree back, behind the call: the kernel lets whoever does it wait until nobody can be walking
// in it.
func (t *Tree) Close() { go func() { _ = t.proc.Close() }() }

// Read returns a parameter without its line's end. One that this kernel does not have is fs.ErrNotExist.
func (t *Tree) Read(name string) (string, error) {
	f, err := t.open(name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(f) }()
	var text []byte
	for part := make([]byte, 512); ; {
		n, err := unix.Read(f, part)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", failed("read", name, err)
		}
		if n == 0 {
			return strings.TrimSpace(string(text)), nil
		}
		text = append(text, part[:n]...)
	}
}

// Write sets a parameter. One that this kernel does not have is fs.ErrNotExist.
func (t *Tree) Write(name, value string) error {
	f, err := t.open(name, unix.O_WRONLY|unix.O_TRUNC)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(f) }()
	for {
		if _, err = unix.Write(f, []byte(value)); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return failed("write", name, err)
	}
	return nil
}

// Set writes only what is different, because some parameters act when written. It says whether it wrote. A
// parameter that this kernel does not have is no error.
func (t *Tree) Set(name, value string) (changed bool, err error) {
	have, err := t.Read(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && have == value {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, t.Write(name, value)
}

func (t *Tree) open(name string, flags int) (int, error) {
	defer runtime.KeepAlive(t)
	for {
		f, err := unix.Openat(int(t.proc.Fd()), path.Join("sys", name), flags|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return -1, failed("open", name, err)
		}
		return f, nil
	}
}

func failed(op, name string, err error) error {
	return &os.PathError{Op: op, Path: path.Join("/proc/sys", name), Err: err}
}
