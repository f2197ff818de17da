package faults_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// fuse is a file system of this process's with one file, "disk", that may be told to fail, and a name,
// "hang", that is never answered: who asks for it cannot even be killed (fuse(4), linux/fuse.h).
type fuse struct {
	t     *testing.T
	Dir   string
	dev   *os.File
	disk  *os.File // what is in the file
	Fails atomic.Bool
	ended bool
}

// The operations that are answered.
const (
	fuseLookup      = 1
	fuseForget      = 2
	fuseGetattr     = 3
	fuseOpen        = 14
	fuseRead        = 15
	fuseWrite       = 16
	fuseRelease     = 18
	fuseFsync       = 20
	fuseFlush       = 25
	fuseInit        = 26
	fuseInterrupt   = 36
	fuseBatchForget = 42
)

const (
	fuseHeader = 40       // bytes before a request's own
	fuseIO     = 64 << 10 // bytes a write has at most
	fuseRoot   = 1
	fuseDisk   = 2
	fuseSize   = 256 << 20
)

// newFuse mounts it on a directory of its own.
func newFuse(t *testing.T) *fuse {
	t.Helper()
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := &fuse{t: t, Dir: t.TempDir(), dev: dev}
	if f.disk, err = os.Create(filepath.Join(t.TempDir(), "content")); err != nil {
		t.Fatal(err)
	}
	if err = f.disk.Truncate(fuseSize); err != nil {
		t.Fatal(err)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", dev.Fd())
	if err = unix.Mount("lab", f.Dir, "fuse.lab", 0, opts); err != nil {
		t.Fatal(err)
	}
	go f.serve(int(dev.Fd()))
	t.Cleanup(f.end)
	return f
}

// end aborts what waits for an answer.
func (f *fuse) end() {
	if f.ended {
		return
	}
	f.ended = true
	_ = unix.Unmount(f.Dir, unix.MNT_FORCE)
	_ = unix.Unmount(f.Dir, unix.MNT_DETACH)
	_ = f.dev.Close()
}

func (f *fuse) serve(dev int) {
	buf := make([]byte, fuseIO+8192)
	for {
		n, err := unix.Read(dev, buf)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil || n < fuseHeader {
			return
		}
		op, unique, node := binary.NativeEndian.Uint32(buf[4:]), binary.NativeEndian.Uint64(buf[8:]), binary.NativeEndian.Uint64(buf[16:])
		body, errno, silent := f.answer(op, node, buf[fuseHeader:n])
		if silent {
			continue
		}
		reply := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
		reply = binary.NativeEndian.AppendUint32(reply, uint32(-int32(errno)))
		reply = append(binary.NativeEndian.AppendUint64(reply, unique), body...)
		_, _ = unix.Write(dev, reply)
	}
}

// answer is what one request is answered with.
func (f *fuse) answer(op uint32, node uint64, in []byte) (body []byte, errno syscall.Errno, silent bool) {
	words := func(v ...uint32) []byte {
		var b []byte
		for _, x := range v {
			b = binary.NativeEndian.AppendUint32(b, x)
		}
		return b
	}
	switch op {
	case fuseForget, fuseBatchForget, fuseInterrupt:
		return nil, 0, true
	case fuseInit:
		out := words(7, 31, fuseIO, 0, 0, fuseIO, 1)
		return append(out, make([]byte, 64-len(out))...), 0, false
	case fuseGetattr:
		return append(words(0, 0, 0, 0), attributes(node)...), 0, false
	case fuseLookup:
		switch string(in) {
		case "hang\x00":
			return nil, 0, true
		case "disk\x00":
			return append(words(fuseDisk, 0, 0, 0, 0, 0, 0, 0, 0, 0), attributes(fuseDisk)...), 0, false
		}
		return nil, unix.ENOENT, false
	case fuseOpen:
		return words(0, 0, 0, 0), 0, false
	case fuseRelease, fuseFlush:
		return nil, 0, false
	case fuseRead, fuseWrite, fuseFsync:
		if f.Fails.Load() {
			return nil, unix.EIO, false
		}
		return f.transfer(op, in)
	}
	return nil, unix.ENOSYS, false
}

func (f *fuse) transfer(op uint32, in []byte) (body []byte, errno syscall.Errno, silent bool) {
	if op == fuseFsync {
		return nil, 0, false
	}
	offset, size := int64(binary.NativeEndian.Uint64(in[8:])), binary.NativeEndian.Uint32(in[16:])
	if op == fuseRead {
		body = make([]byte, size)
		n, _ := f.disk.ReadAt(body, offset)
		return body[:n], 0, false
	}
	n, err := f.disk.WriteAt(in[40:40+size], offset)
	if err != nil {
		return nil, unix.EIO, false
	}
	return binary.NativeEndian.AppendUint64(nil, uint64(n)), 0, false
}

// attributes are those of the directory or the file, struct fuse_attr.
func attributes(node uint64) []byte {
	size, mode := uint64(0), uint32(unix.S_IFDIR|0o755)
	if node == fuseDisk {
		size, mode = fuseSize, unix.S_IFREG|0o600
	}
	b := binary.NativeEndian.AppendUint64(nil, node)
	b = binary.NativeEndian.AppendUint64(b, size)
	b = append(b, make([]byte, 4*8+3*4)...) // blocks and times
	b = binary.NativeEndian.AppendUint32(b, mode)
	b = binary.NativeEndian.AppendUint32(b, 1)
	return append(b, make([]byte, 88-len(b))...)
}
