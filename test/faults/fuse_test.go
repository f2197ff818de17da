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

// fuse is a file system of this process's (fuse(4), linux/fuse.h). Its answer is asked by one goroutine.
type fuse struct {
	Dir    string
	dev    *os.File
	answer func(op uint32, node uint64, in []byte) (body []byte, errno syscall.Errno, silent bool)
	ended  bool
}

// fuseFile is a file system with one file, "disk", that may be told to fail, and a name, "hang", that is
// never answered: who asks for it cannot even be killed.
type fuseFile struct {
	*fuse
	content *os.File
	Fails   atomic.Bool
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

// newFuse mounts a fuseFile on a directory of its own.
func newFuse(t *testing.T) *fuseFile {
	t.Helper()
	content, err := os.Create(filepath.Join(t.TempDir(), "content"))
	if err != nil {
		t.Fatal(err)
	}
	if err = content.Truncate(fuseSize); err != nil {
		t.Fatal(err)
	}
	f := &fuseFile{content: content}
	f.fuse = mountFuse(t, f.answer)
	return f
}

// mountFuse mounts what is answered for on a directory of its own.
func mountFuse(t *testing.T, answer func(uint32, uint64, []byte) ([]byte, syscall.Errno, bool)) *fuse {
	t.Helper()
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := &fuse{Dir: t.TempDir(), dev: dev, answer: answer}
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
func (f *fuseFile) answer(op uint32, node uint64, in []byte) (body []byte, errno syscall.Errno, silent bool) {
	switch op {
	case fuseForget, fuseBatchForget, fuseInterrupt:
		return nil, 0, true
	case fuseInit:
		return initialised(), 0, false
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

// initialised is the struct fuse_init_out.
func initialised() []byte {
	out := words(7, 31, fuseIO, 0, 0, fuseIO, 1)
	return append(out, make([]byte, 64-len(out))...)
}

func words(v ...uint32) []byte {
	var b []byte
	for _, x := range v {
		b = binary.NativeEndian.AppendUint32(b, x)
	}
	return b
}

func quads(v ...uint64) []byte {
	var b []byte
	for _, x := range v {
		b = binary.NativeEndian.AppendUint64(b, x)
	}
	return b
}

func (f *fuseFile) transfer(op uint32, in []byte) (body []byte, errno syscall.Errno, silent bool) {
	if op == fuseFsync {
		return nil, 0, false
	}
	offset, size := int64(binary.NativeEndian.Uint64(in[8:])), binary.NativeEndian.Uint32(in[16:])
	if op == fuseRead {
		body = make([]byte, size)
		n, _ := f.content.ReadAt(body, offset)
		return body[:n], 0, false
	}
	n, err := f.content.WriteAt(in[40:40+size], offset)
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
