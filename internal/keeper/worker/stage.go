package worker

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A stage is where the output of one stream waits between the container's FIFO and the log. It is a
// memory file that the holder keeps, so it outlives the worker:
//
//	page 0     the record: how far the log has come, and the batch that is being appended
//	then       the bytes of the stream, from the container's start; those in the log are punched out
//
// A splice from a FIFO to a memory file takes from the one exactly what it adds to the other, also
// when a SIGKILL arrives in the middle: the file's size says what came. So every byte is at any
// moment in the FIFO, or in the stage, or before record.done and in the log.
type stage struct {
	fd      int
	page    []byte // page 0, mapped
	rec     *record
	size    int64 // bytes that ever came
	punched int64 // file offset below which nothing is kept
}

// record is shared memory; a successor continues from it. A batch is [done, end): at and offset are
// valid while end > done.
type record struct {
	done   int64 // bytes that are in the log
	end    int64 // where the batch ends that is being appended
	at     int64 // its stamp, in ns since 1970
	offset int64 // the log file's size before it
	open   int64 // logdriver.Open: whose line the log has in part

	// What is dropped. The batch [done, end) is one that is to be dropped if dropEnd is its end; droppedTo
	// counts from the moment that done has come to dropEnd, dropped until then.
	dropped   int64
	dropEnd   int64
	droppedTo int64
	// line is the stream position to which it holds, times four, and the bits of lineState.
	line int64
	// was is the lineState before the batch that has begun.
	was int64
}

const (
	recordSize = 4096
	// window is the most that waits in a stage: more than a piece, so that there is always progress.
	window = 32 << 10
)

// newStage makes an empty stage's memory file.
func newStage(name string) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make stage: %w", err)
	}
	if err := unix.Ftruncate(fd, recordSize); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make stage: %w", err)
	}
	return fd, nil
}

// openStage takes over the memory file fd as its last user left it.
func openStage(fd int) (*stage, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("open stage: %w", err)
	}
	if st.Size < recordSize {
		return nil, fmt.Errorf("open stage: %d bytes: %w", st.Size, os.ErrInvalid)
	}
	page, err := unix.Mmap(fd, 0, recordSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map stage: %w", err)
	}
	return &stage{
		fd: fd, page: page, rec: (*record)(unsafe.Pointer(&page[0])),
		size: st.Size - recordSize, punched: recordSize,
	}, nil
}

func (s *stage) close() {
	_ = unix.Munmap(s.page)
	_ = unix.Close(s.fd)
	s.rec, s.page = nil, nil
}

// waiting is how many bytes are not in the log.
func (s *stage) waiting() int { return int(s.size - atomic.LoadInt64(&s.rec.done)) }

// fill takes what is in the pipe, as far as there is room. EAGAIN means that the pipe is empty.
func (s *stage) fill(pipe int) (int, error) {
	room := window - s.waiting()
	if room <= 0 {
		return 0, nil
	}
	at := recordSize + s.size
	n, err := unix.Splice(pipe, nil, s.fd, &at, room, unix.SPLICE_F_NONBLOCK)
	s.size += max(n, 0)
	return int(max(n, 0)), err
}

// put adds bytes that did not come through a pipe.
func (s *stage) put(data []byte) error {
	n, err := unix.Pwrite(s.fd, data, recordSize+s.size)
	s.size += int64(max(n, 0))
	return err
}

// read copies from the stream position pos on.
func (s *stage) read(dst []byte, pos int64) ([]byte, error) {
	dst = dst[:min(int64(len(dst)), s.size-pos)]
	for n := 0; n < len(dst); {
		k, err := unix.Pread(s.fd, dst[n:], recordSize+pos+int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || k == 0 {
			return nil, fmt.Errorf("read stage: %d of %d bytes: %w", n, len(dst), err)
		}
		n += k
	}
	return dst, nil
}

// begin notes a batch of n bytes before its first byte is written to the log.
func (s *stage) begin(n int, at, offset int64) {
	s.rec.at, s.rec.offset, s.rec.was = at, offset, int64(s.lineNow())
	atomic.StoreInt64(&s.rec.end, atomic.LoadInt64(&s.rec.done)+int64(n))
}

// commit ends the batch: it is in the log, whole.
func (s *stage) commit() {
	done := atomic.LoadInt64(&s.rec.end)
	atomic.StoreInt64(&s.rec.done, done)
	if upTo := (recordSize + done) &^ (recordSize - 1); upTo-s.punched >= window/2 || done == s.size && upTo > s.punched {
		if unix.Fallocate(s.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, s.punched, upTo-s.punched) == nil {
			s.punched = upTo
		}
	}
}

// drop ends a batch of n bytes, which are so many bytes of output, without the log. Whenever the worker dies, each of
// them counts as dropped once, or is logged and does not count.
func (s *stage) drop(n, output int, line lineState) {
	end := atomic.LoadInt64(&s.rec.done) + int64(n)
	atomic.StoreInt64(&s.rec.dropped, s.droppedBytes())
	atomic.StoreInt64(&s.rec.dropEnd, end)
	atomic.StoreInt64(&s.rec.droppedTo, atomic.LoadInt64(&s.rec.dropped)+int64(output))
	atomic.StoreInt64(&s.rec.end, end)
	s.setLine(line)
	s.commit()
}

// lose counts n bytes of a batch that was committed. A worker that dies just before does not.
func (s *stage) lose(n int) {
	atomic.StoreInt64(&s.rec.dropped, s.droppedBytes()+int64(n))
	atomic.StoreInt64(&s.rec.droppedTo, atomic.LoadInt64(&s.rec.dropped))
}

// drops says whether the pending batch is one that is to be dropped.
func (s *stage) drops() bool {
	return atomic.LoadInt64(&s.rec.dropEnd) == atomic.LoadInt64(&s.rec.end)
}

// droppedBytes is how much of the stream was dropped.
func (s *stage) droppedBytes() int64 {
	if atomic.LoadInt64(&s.rec.dropEnd) <= atomic.LoadInt64(&s.rec.done) {
		return atomic.LoadInt64(&s.rec.droppedTo)
	}
	return atomic.LoadInt64(&s.rec.dropped)
}

// setLine notes how the batch that has begun leaves the stream's line.
func (s *stage) setLine(line lineState) { s.setLineAt(atomic.LoadInt64(&s.rec.end), line) }

func (s *stage) setLineAt(pos int64, line lineState) {
	atomic.StoreInt64(&s.rec.line, pos<<2|int64(line))
}

// hasLine says whether setLine was called for the batch that has begun.
func (s *stage) hasLine() bool {
	return atomic.LoadInt64(&s.rec.line)>>2 == atomic.LoadInt64(&s.rec.end)
}

// lineNow is how the last batch has left the stream's line.
func (s *stage) lineNow() lineState {
	v := atomic.LoadInt64(&s.rec.line)
	if v>>2 != atomic.LoadInt64(&s.rec.done) {
		return 0
	}
	return lineState(v & 3)
}

// shrink makes the batch that has begun end after n bytes, which leave the stream's line like that: the
// rest of it is no part of the batch.
func (s *stage) shrink(n int, line lineState) {
	end := atomic.LoadInt64(&s.rec.done) + int64(n)
	s.setLineAt(end, line)
	atomic.StoreInt64(&s.rec.end, end)
}

// pending returns the batch that a dead worker may have appended in part.
func (s *stage) pending() (n int, at, offset int64) {
	n = int(atomic.LoadInt64(&s.rec.end) - atomic.LoadInt64(&s.rec.done))
	return n, s.rec.at, s.rec.offset
}
