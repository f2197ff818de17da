package faults_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The operations on directories and whole trees, beside those that one file needs.
const (
	fuseSetattr    = 4
	fuseReadlink   = 5
	fuseSymlink    = 6
	fuseMknod      = 8
	fuseMkdir      = 9
	fuseUnlink     = 10
	fuseRmdir      = 11
	fuseRename     = 12
	fuseLink       = 13
	fuseStatfs     = 17
	fuseOpendir    = 27
	fuseReaddir    = 28
	fuseReleasedir = 29
	fuseFsyncdir   = 30
	fuseCreate     = 35
	fuseRename2    = 45
)

// What struct fuse_setattr_in has: bits of its first word.
const (
	setMode = 1 << iota
	setUID
	setGID
	setSize
	setAtime
	setMtime
)

const (
	fuseDirectIO = 1    // fuse_open_out: nothing is answered from the page cache
	longTime     = 3600 // seconds a name and its attributes are known without asking, as on a disk
)

// through is a file system that shows another directory. While everything fails, what has to be asked
// for, or changed, is answered with EIO; what the kernel knows by itself it still does.
type through struct {
	*fuse
	nodes map[uint64]*shown
	files map[uint64]*os.File // open ones
	names map[uint64][]os.DirEntry
	last  uint64 // handle
	fails atomic.Int32
}

// What of a through fails.
const (
	nothingFails int32 = iota
	contentFails       // opening and reading files; directories can be read
	everythingFails
)

// shown is a file of the other directory that the kernel knows.
type shown struct {
	fd      int // O_PATH
	lookups uint64
}

// showThrough mounts a file system that shows dir.
func showThrough(t *testing.T, dir string) *through {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	s := &through{
		nodes: map[uint64]*shown{fuseRoot: {fd: fd, lookups: 1}},
		files: map[uint64]*os.File{}, names: map[uint64][]os.DirEntry{},
	}
	s.fuse = mountFuse(t, s.answer)
	return s
}

func (s *through) answer(op uint32, node uint64, in []byte) (body []byte, errno syscall.Errno, silent bool) {
	switch op {
	case fuseForget, fuseBatchForget, fuseInterrupt:
		s.forget(op, node, in)
		return nil, 0, true
	case fuseInit:
		return initialised(), 0, false
	case fuseRelease, fuseReleasedir:
		s.release(in)
		return nil, 0, false
	}
	if fails := s.fails.Load(); fails == everythingFails || fails == contentFails && (op == fuseOpen || op == fuseRead) {
		return nil, unix.EIO, false
	}
	of := s.nodes[node]
	if of == nil {
		return nil, unix.ESTALE, false
	}
	for _, ask := range []func(uint32, *shown, []byte) ([]byte, error){s.askName, s.askNode, s.askOpen, s.askHandle} {
		body, err := ask(op, of, in)
		if errors.Is(err, unix.ENOSYS) {
			continue
		}
		if err != nil && !errors.As(err, &errno) {
			errno = unix.EIO
		}
		return body, errno, false
	}
	return nil, unix.ENOSYS, false
}

// askName answers what is asked of a name in a directory.
func (s *through) askName(op uint32, dir *shown, in []byte) ([]byte, error) {
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(in[4*i:]) }
	other := func() int { return s.nodes[binary.NativeEndian.Uint64(in)].fd }
	switch op {
	case fuseLookup:
		return s.entry(dir, text(in, 0, 0))
	case fuseSymlink:
		name := text(in, 0, 0)
		return s.made(dir, name, unix.Symlinkat(text(in, 0, 1), dir.fd, name))
	case fuseMknod:
		name := text(in, 16, 0)
		return s.made(dir, name, unix.Mknodat(dir.fd, name, word(0), int(word(1))))
	case fuseMkdir:
		name := text(in, 8, 0)
		return s.made(dir, name, unix.Mkdirat(dir.fd, name, word(0)))
	case fuseUnlink:
		return nil, unix.Unlinkat(dir.fd, text(in, 0, 0), 0)
	case fuseRmdir:
		return nil, unix.Unlinkat(dir.fd, text(in, 0, 0), unix.AT_REMOVEDIR)
	case fuseRename:
		return nil, unix.Renameat(dir.fd, text(in, 8, 0), other(), text(in, 8, 1))
	case fuseRename2:
		return nil, unix.Renameat2(dir.fd, text(in, 16, 0), other(), text(in, 16, 1), uint(word(2)))
	case fuseLink:
		name := text(in, 8, 0)
		return s.made(dir, name, unix.Linkat(unix.AT_FDCWD, procPath(other()), dir.fd, name, unix.AT_SYMLINK_FOLLOW))
	case fuseCreate:
		name := text(in, 16, 0)
		fd, err := unix.Openat(dir.fd, name, int(word(0))&^unix.O_NOFOLLOW|unix.O_CREAT|unix.O_CLOEXEC, word(1))
		if err != nil {
			return nil, err
		}
		entry, err := s.entry(dir, name)
		return append(entry, s.opened(os.NewFile(uintptr(fd), name))...), err
	}
	return nil, unix.ENOSYS
}

// askNode answers what is asked of a file that is not open.
func (s *through) askNode(op uint32, of *shown, in []byte) ([]byte, error) {
	switch op {
	case fuseGetattr:
		return of.attributes()
	case fuseSetattr:
		if err := of.change(in); err != nil {
			return nil, err
		}
		return of.attributes()
	case fuseReadlink:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(of.fd, "", buf)
		return buf[:max(n, 0)], err
	case fuseStatfs:
		var st unix.Statfs_t
		err := unix.Fstatfs(of.fd, &st)
		out := quads(st.Blocks, st.Bfree, st.Bavail, st.Files, st.Ffree)
		out = append(out, words(uint32(st.Bsize), uint32(st.Namelen), uint32(st.Frsize))...)
		return append(out, make([]byte, 80-len(out))...), err
	}
	return nil, unix.ENOSYS
}

// askOpen answers who opens.
func (s *through) askOpen(op uint32, of *shown, in []byte) ([]byte, error) {
	if op != fuseOpen && op != fuseOpendir {
		return nil, unix.ENOSYS
	}
	fd, err := unix.Open(procPath(of.fd), int(binary.NativeEndian.Uint32(in))&^unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return s.opened(os.NewFile(uintptr(fd), "shown")), nil
}

// askHandle answers what is asked of an open file.
func (s *through) askHandle(op uint32, _ *shown, in []byte) ([]byte, error) {
	switch op {
	case fuseFlush, fuseFsync, fuseFsyncdir:
		return nil, nil
	case fuseRead, fuseWrite, fuseReaddir:
	default:
		return nil, unix.ENOSYS
	}
	handle, offset, size := binary.NativeEndian.Uint64(in), int64(binary.NativeEndian.Uint64(in[8:])), binary.NativeEndian.Uint32(in[16:])
	f := s.files[handle]
	if f == nil {
		return nil, unix.EBADF
	}
	switch op {
	case fuseReaddir:
		return s.list(handle, f, int(offset), int(size))
	case fuseRead:
		body := make([]byte, size)
		n, err := unix.Pread(int(f.Fd()), body, offset)
		return body[:max(n, 0)], err
	}
	n, err := unix.Pwrite(int(f.Fd()), in[40:40+size], offset) // it was opened with O_APPEND, if the kernel's was
	return words(uint32(max(n, 0)), 0), err
}

// list has the entries from the offset on that fit, struct fuse_dirent.
func (s *through) list(handle uint64, dir *os.File, offset, size int) ([]byte, error) {
	if offset == 0 {
		if _, err := dir.Seek(0, 0); err != nil {
			return nil, err
		}
		var err error
		if s.names[handle], err = dir.ReadDir(-1); err != nil {
			return nil, err
		}
	}
	var out []byte
	for i, e := range s.names[handle][min(offset, len(s.names[handle])):] {
		name := e.Name()
		entry := append(quads(1, uint64(offset+i+1)), words(uint32(len(name)), 0)...)
		entry = append(entry, name...)
		entry = append(entry, make([]byte, -len(entry)&7)...)
		if len(out)+len(entry) > size {
			break
		}
		out = append(out, entry...)
	}
	return out, nil
}

func (s *through) made(dir *shown, name string, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return s.entry(dir, name)
}

// entry is the struct fuse_entry_out of a name, which the kernel knows from now on.
func (s *through) entry(dir *shown, name string) ([]byte, error) {
	fd, err := unix.Openat(dir.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if known := s.nodes[st.Ino+fuseRoot]; known != nil {
		known.lookups++
		_ = unix.Close(fd)
	} else {
		s.nodes[st.Ino+fuseRoot] = &shown{fd: fd, lookups: 1}
	}
	return append(append(quads(st.Ino+fuseRoot, 0, longTime, longTime), words(0, 0)...), attributesOf(&st)...), nil
}

// opened is the struct fuse_open_out of a file.
func (s *through) opened(f *os.File) []byte {
	s.last++
	s.files[s.last] = f
	return append(quads(s.last), words(fuseDirectIO, 0)...)
}

func (s *through) release(in []byte) {
	handle := binary.NativeEndian.Uint64(in)
	if f := s.files[handle]; f != nil {
		_ = f.Close()
	}
	delete(s.files, handle)
	delete(s.names, handle)
}

func (s *through) forget(op uint32, node uint64, in []byte) {
	drop := func(node, lookups uint64) {
		of := s.nodes[node]
		if of == nil || node == fuseRoot {
			return
		}
		if of.lookups -= lookups; of.lookups == 0 {
			_ = unix.Close(of.fd)
			delete(s.nodes, node)
		}
	}
	switch op {
	case fuseForget:
		drop(node, binary.NativeEndian.Uint64(in))
	case fuseBatchForget:
		for in = in[8:]; len(in) >= 16; in = in[16:] {
			drop(binary.NativeEndian.Uint64(in), binary.NativeEndian.Uint64(in[8:]))
		}
	}
}

// attributes is the file's struct fuse_attr_out.
func (of *shown) attributes() ([]byte, error) {
	var st unix.Stat_t
	err := unix.Fstat(of.fd, &st)
	return append(append(quads(longTime), words(0, 0)...), attributesOf(&st)...), err
}

// change does what a struct fuse_setattr_in asks for.
func (of *shown) change(in []byte) error {
	valid, path := binary.NativeEndian.Uint32(in), procPath(of.fd)
	word := func(at int) uint32 { return binary.NativeEndian.Uint32(in[at:]) }
	var errs []error
	if valid&setMode != 0 {
		errs = append(errs, unix.Chmod(path, word(68)&0o7777))
	}
	if valid&(setUID|setGID) != 0 {
		uid, gid := -1, -1
		if valid&setUID != 0 {
			uid = int(word(76))
		}
		if valid&setGID != 0 {
			gid = int(word(80))
		}
		errs = append(errs, unix.Chown(path, uid, gid))
	}
	if valid&setSize != 0 {
		errs = append(errs, unix.Truncate(path, int64(binary.NativeEndian.Uint64(in[16:]))))
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	for i, bit := range []uint32{setAtime, setMtime} {
		if valid&bit != 0 {
			times[i] = unix.Timespec{Sec: int64(binary.NativeEndian.Uint64(in[32+8*i:])), Nsec: int64(word(56 + 4*i))}
		}
	}
	errs = append(errs, unix.UtimesNanoAt(unix.AT_FDCWD, path, times, 0))
	return errors.Join(errs...)
}

// procPath is a path of what an O_PATH descriptor names.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// text is the i-th of the names that follow so many bytes.
func text(in []byte, after, i int) string { return string(bytes.Split(in[after:], []byte{0})[i]) }

func attributesOf(st *unix.Stat_t) []byte {
	b := quads(st.Ino+fuseRoot, uint64(st.Size), uint64(st.Blocks), uint64(st.Atim.Sec), uint64(st.Mtim.Sec), uint64(st.Ctim.Sec))
	return append(b, words(uint32(st.Atim.Nsec), uint32(st.Mtim.Nsec), uint32(st.Ctim.Nsec),
		st.Mode, uint32(st.Nlink), st.Uid, st.Gid, uint32(st.Rdev), uint32(st.Blksize), 0)...)
}
