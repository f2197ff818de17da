package worker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

// logFile is the log of one container, written by its streams one batch at a time. The holder keeps
// its descriptor, so that a successor completes a batch in the same file even if it was renamed.
type logFile struct {
	path    string
	stop    chan struct{} // closed when the container is deleted
	stopped sync.Once

	mu     sync.Mutex
	fd     int // -1: output is dropped
	bounds bounds
}

// openLog opens the log for appending. made says that it was not there before. A container that has
// the directory mounted may have put anything in its place, so only a regular file will do, and no link
// is followed on the way to it: none at its name, and none behind "/./" in path.
func openLog(path string) (fd int, made bool, err error) {
	const flags = unix.O_WRONLY | unix.O_APPEND | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NOCTTY |
		unix.O_NONBLOCK // a FIFO without a reader is an error then
	fd, err = openBelow(path, flags|unix.O_EXCL)
	if err == nil {
		return fd, true, nil
	}
	if errors.Is(err, unix.EEXIST) {
		fd, err = openBelow(path, flags)
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return -1, false, wire.Errorf(wire.CodeNotFound, "open log %s: %v", path, err)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENXIO):
		return -1, false, wire.Errorf(wire.CodeInvalid, "open log %s: %v", path, err)
	case err != nil:
		return -1, false, fmt.Errorf("open log %s: %w", path, err)
	}
	if !regular(fd) {
		_ = unix.Close(fd)
		return -1, false, wire.Errorf(wire.CodeInvalid, "open log %s: it is no regular file", path)
	}
	return fd, false, nil
}

// openLost opens a log whose descriptor was lost with a holder. An entry that the worker was writing when
// it died too has no end and never gets one: it is taken away, or the next would seem to continue it.
func openLost(path string) (fd int, made bool, err error) {
	fd, made, err = openLog(path)
	if err != nil || made {
		return fd, made, err
	}
	if err = cutTorn(fd); err != nil {
		log.Printf("%s: the end of what a dead keeper wrote: %v", path, err)
	}
	return fd, false, nil
}

// cutTorn shortens a file of lines to its last whole one.
func cutTorn(fd int) error {
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd)) // fd itself is for writing alone
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for end := size; end > 0; {
		chunk := buf[:min(end, int64(len(buf)))]
		end -= int64(len(chunk))
		if _, err := f.ReadAt(chunk, end); err != nil {
			return err
		}
		if i := bytes.LastIndexByte(chunk, '\n'); i >= 0 {
			if whole := end + int64(i) + 1; whole < size {
				return unix.Ftruncate(fd, whole)
			}
			return nil
		}
	}
	return unix.Ftruncate(fd, 0)
}

// openBelow opens path; what follows "/./" in it is reached without a link. Kernels before 5.6, and
// some sandboxes, cannot look out for links on the way (openat2(2)).
func openBelow(path string, flags uint64) (int, error) {
	const mode = 0o640
	root, rest, guarded := strings.Cut(path, "/./")
	if !guarded {
		return unix.Open(path, int(flags), mode)
	}
	dir, err := unix.Open(root+"/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(dir) }()
	fd, err := unix.Openat2(dir, rest, &unix.OpenHow{Flags: flags, Mode: mode, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_BENEATH})
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		return unix.Openat(dir, rest, int(flags), mode)
	}
	return fd, err
}

// regular says whether fd is a file whose size tells what was written to it.
func regular(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// append logs one batch of s, formatted into out. Where the file cannot be written, the output waits
// until it can, or as long as the log's bounds say.
func (l *logFile) append(s *stream, raw, out []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.fd < 0 {
		s.st.begin(len(raw), 0, 0)
		s.commit(raw)
		return
	}
	if l.bounds.LogBounds != (wire.LogBounds{}) {
		l.batch(s, raw, out)
		return
	}
	offset, _ := l.sizeWithin(0) // unknown only when the container is removed
	s.st.begin(len(raw), now.UnixNano(), offset)
	l.writeAll(s.entries(out, now, raw, s.st.lineNow()))
	s.commit(raw)
}

// complete writes what the file lacks of a batch that began at offset, and returns what it had.
func (l *logFile) complete(out []byte, offset int64) (had int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return 0
	}
	size, known := l.sizeWithin(0)
	if !known {
		return 0
	}
	had = int(max(0, min(size-offset, int64(len(out)))))
	l.writeAll(out[had:])
	return had
}

// tryComplete writes what the file lacks of the batch that is pending, without waiting. When it can't, it ends the
// batch where the file has whole entries.
func (l *logFile) tryComplete(s *stream, raw, out []byte, was lineState) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return true
	}
	_, _, offset := s.st.pending()
	size, err := l.size()
	if err != nil { // it was known a moment ago; what is there of the batch may be there twice then
		size = offset
	}
	had := int(max(0, min(size-offset, int64(len(out)))))
	for had < len(out) {
		n, err := unix.Write(l.fd, out[had:])
		had += max(n, 0)
		if err != nil && !errors.Is(err, unix.EINTR) {
			log.Printf("%s: complete a batch: %v", l.path, err)
			l.abandon(s, raw, out[:had], was)
			return false
		}
	}
	return true
}

// size is how long the file is. A disk's file always knows; one of the network or of FUSE may not.
func (l *logFile) size() (int64, error) {
	var st unix.Stat_t
	err := unix.Fstat(l.fd, &st)
	return st.Size, err
}

// sizeWithin asks for the size again and again, as write tries to write.
func (l *logFile) sizeWithin(limit time.Duration) (size int64, known bool) {
	for {
		size, err := l.size()
		if err == nil {
			return size, true
		}
		if !l.pause(err, limit) {
			return 0, false
		}
	}
}

// answers says whether the size is known, if there is a file; with wait it tries as long as output waits.
func (l *logFile) answers(wait bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 {
		return true
	}
	if wait {
		_, known := l.sizeWithin(l.bounds.FullWait)
		return known
	}
	_, err := l.size()
	return err == nil
}

// writeAll appends all of out, waiting as long as the disk is full.
func (l *logFile) writeAll(out []byte) { l.write(out, 0) }

// write appends out and returns how much of it was written: less when the file could not be written for as
// long as limit, which is not 0, or when the container is removed.
func (l *logFile) write(out []byte, limit time.Duration) (written int) {
	for written < len(out) {
		n, err := unix.Write(l.fd, out[written:])
		written += max(n, 0)
		if err == nil || errors.Is(err, unix.EINTR) {
			continue
		}
		if !l.pause(err, limit) {
			return written
		}
	}
	return written
}

// pause waits a moment after a failure and says whether to try again: not when the file could not be used for
// as long as limit, if that is not 0, nor when the container is removed.
func (l *logFile) pause(err error, limit time.Duration) bool {
	now := time.Now()
	if l.bounds.failed(now, limit) {
		log.Printf("%s: output waits: %v", l.path, err)
	}
	pause := time.Second
	if limit > 0 {
		if pause = min(pause, limit-now.Sub(l.bounds.full)); pause <= 0 {
			return false
		}
	}
	select {
	case <-l.stop:
		return false
	case <-time.After(pause):
		return true
	}
}

// giveUp ends the waiting for a full disk, for good: what does not fit is lost.
func (l *logFile) giveUp() { l.stopped.Do(func() { close(l.stop) }) }

// reopen goes on in the file that now has the log's path. keep gives the new descriptor to the
// holder; no batch is under way while it does.
func (l *logFile) reopen(keep func(fd int) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.path == "" {
		return nil
	}
	fd, _, err := openLog(l.path)
	if err != nil {
		return err
	}
	if err := keep(fd); err != nil {
		_ = unix.Close(fd)
		return err
	}
	if l.fd >= 0 {
		_ = unix.Close(l.fd)
	}
	l.fd = fd
	return nil
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd >= 0 {
		_ = unix.Close(l.fd)
		l.fd = -1
	}
}

// removeMade removes a log that a create which failed had made.
func removeMade(path string, made bool) {
	if made {
		_ = os.Remove(path)
	}
}
