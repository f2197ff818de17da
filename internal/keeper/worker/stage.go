package worker

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A stage is where the output of one stream waits between the container's FIFO and the log. It is a
// memory file that the holder keeps, so it outlives the worker:
//
//	page 0     the record: how far the log has come, and the batch that is being appended
//	areaAt on  the area: the bytes of the stream that are not in the log, and room for more
//
// Bytes come into the area one lap after the other, so its pages are used again. A splice from a FIFO
// to a memory file takes from the one exactly what it adds to the other, also when a SIGKILL arrives in the
// middle: the position of the open file, which the holder's descriptor has in common with the worker's,
// says what came. So every byte is at any moment in the FIFO, or in the stage, or before record.done and
// in the log.
//
// At rest nothing is in the area, and the file is as if all that ever came followed page 0: its size says how much that
// is, and what waits is at its end. So is a new stage, and so does a keeper leave and expect it that knows no area.
type stage struct {
	fd    int
	page  []byte // page 0, mapped
	rec   *record
	area  []byte // mapped twice, one behind the other, so that what goes on at the area's start is in one piece
	rests bool
	size  int64 // bytes that ever came
	start int64 // stream position of the area's first byte in this lap
	used  int   // the area has no more pages than for so many bytes, and its first
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
	// lap is a stream position, times four, and the bits lapKnown and lapMoves.
	lap int64
}

// At rest lap is 0.
const (
	// lapKnown: the position is that of the area's first byte. Without it, it is that of the next to come.
	lapKnown = 1
	// lapMoves: with lapKnown, the next byte to come is the area's first, and the file's position is being set back
	// to it; without, the stage comes to rest or wakes, and what waits is in its place behind page 0.
	lapMoves = 2
)

const (
	recordSize = 4096
	// areaAt is where the area begins in the file: a multiple of every machine's page size, as window is.
	areaAt = 64 << 10
	// window is the area's size, the most that waits in a stage: what a pipe holds, and more than a piece, so
	// that there is always progress.
	window = 64 << 10
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
func openStage(fd int) (s *stage, err error) {
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("open stage: %w", err)
	}
	if st.Size < recordSize {
		return nil, fmt.Errorf("open stage: %d bytes: %w", st.Size, os.ErrInvalid)
	}
	s = &stage{fd: fd}
	if s.page, err = unix.Mmap(fd, 0, recordSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map stage: %w", err)
	}
	s.rec = (*record)(unsafe.Pointer(&s.page[0]))
	lap := atomic.LoadInt64(&s.rec.lap)
	switch {
	case lap&lapKnown != 0:
		err = s.goOn(lap)
	case lap&lapMoves != 0:
		err = s.wake(lap >> 2)
	default:
		err = s.wake(st.Size - recordSize)
	}
	if err == nil {
		err = s.mapArea()
	}
	if err != nil {
		_ = unix.Munmap(s.page)
		return nil, fmt.Errorf("open stage: %w", err)
	}
	s.used = window // for all that is known
	return s, nil
}

// goOn finds out what came into the area.
func (s *stage) goOn(lap int64) error {
	s.start = lap >> 2
	if lap&lapMoves != 0 {
		s.lap(s.start)
	}
	at, err := unix.Seek(s.fd, 0, unix.SEEK_CUR)
	if err != nil {
		return err
	}
	s.size = s.start + at - areaAt
	if n := s.waiting(); n < 0 || n > window {
		return fmt.Errorf("%d bytes wait: %w", n, os.ErrInvalid)
	}
	return nil
}

// wake ends the rest of a stage into which size bytes ever came: what waits moves into the area.
func (s *stage) wake(size int64) (err error) {
	start, waits := size, size != atomic.LoadInt64(&s.rec.done)
	if waits {
		atomic.StoreInt64(&s.rec.lap, size<<2|lapMoves)
		if start, err = s.carry(size); err != nil {
			return err
		}
	}
	if _, err = unix.Seek(s.fd, areaAt+size-start, unix.SEEK_SET); err != nil {
		return err
	}
	atomic.StoreInt64(&s.rec.lap, start<<2|lapKnown)
	s.rests, s.start, s.size = false, start, size
	if waits {
		s.used = window
		s.punch(recordSize, areaAt)
		s.punch(areaAt+window, recordSize+size)
	}
	return nil
}

// carry copies what waits into the area and returns the position of the area's first byte. What is there already
// stays and goes behind itself: there is room for that as long as no more than half an area waits.
func (s *stage) carry(size int64) (start int64, err error) {
	done := atomic.LoadInt64(&s.rec.done)
	if size < done || size-done > window/2 {
		return 0, fmt.Errorf("%d bytes wait: %w", size-done, os.ErrInvalid)
	}
	b := pool.Get().(*buffers)
	defer pool.Put(b)
	waits := b.raw[:size-done]
	n, err := unix.Pread(s.fd, waits, recordSize+done)
	if err != nil || n < len(waits) {
		return 0, fmt.Errorf("%d bytes of %d: %w", n, len(waits), cmp.Or(err, io.ErrUnexpectedEOF))
	}
	at := max(0, recordSize+size-areaAt) % window
	first := min(int64(len(waits)), window-at)
	if _, err = unix.Pwrite(s.fd, waits[:first], areaAt+at); err == nil {
		_, err = unix.Pwrite(s.fd, waits[first:], areaAt)
	}
	if start = done - at; size-start > window {
		start += window
	}
	return start, err
}

// rest is called when nothing more comes for now. The area's pages are given back, but a stream of few bytes keeps its
// first. Where what waits can't go from the area to its place, which is in it, the stage does not rest.
func (s *stage) rest() {
	if s.rests {
		return
	}
	waits, at := s.waits(), recordSize+atomic.LoadInt64(&s.rec.done)
	if end := at + int64(len(waits)); at < end {
		if len(waits) > window/2 || at < areaAt+window && end > areaAt {
			return
		}
		if n, err := unix.Pwrite(s.fd, waits, at); err != nil || n < len(waits) {
			return
		}
		atomic.StoreInt64(&s.rec.lap, s.size<<2|lapMoves)
	}
	if unix.Ftruncate(s.fd, recordSize+s.size) == nil {
		atomic.StoreInt64(&s.rec.lap, 0)
	}
	s.rests = true
	if s.used > recordSize {
		s.punch(areaAt, areaAt+window)
	}
	s.used = 0
}

// punch gives back the pages between two places of the file, and all of that in which the second is.
func (s *stage) punch(from, to int64) {
	page := int64(os.Getpagesize())
	if to = (to + page - 1) &^ (page - 1); from < to { // where it fails, the pages stay
		_ = unix.Fallocate(s.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
	}
}

// mapArea maps the area. It is there as far as bytes came into it.
func (s *stage) mapArea() error {
	// The second half of the first mapping makes room for the second.
	first, err := unix.MmapPtr(s.fd, areaAt, nil, 2*window, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	s.area = unsafe.Slice((*byte)(first), 2*window)
	if _, err := unix.MmapPtr(s.fd, areaAt, unsafe.Pointer(&s.area[window]), window, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		s.unmap()
		return err
	}
	return nil
}

func (s *stage) unmap() { _ = unix.MunmapPtr(unsafe.Pointer(&s.area[0]), 2*window) }

func (s *stage) close() {
	s.unmap()
	_ = unix.Munmap(s.page)
	_ = unix.Close(s.fd)
	s.rec, s.page, s.area = nil, nil, nil
}

// waiting is how many bytes are not in the log.
func (s *stage) waiting() int { return int(s.size - atomic.LoadInt64(&s.rec.done)) }

// lap begins the area anew, with the byte at the stream position start, which is the next to come.
func (s *stage) lap(start int64) {
	atomic.StoreInt64(&s.rec.lap, start<<2|lapKnown|lapMoves)
	_, _ = unix.Seek(s.fd, areaAt, unix.SEEK_SET) // fails only where there is no such descriptor
	atomic.StoreInt64(&s.rec.lap, start<<2|lapKnown)
	s.start = start
}

// awake ends the stage's rest.
func (s *stage) awake() error {
	if !s.rests {
		return nil
	}
	return s.wake(s.size)
}

// room is how many bytes may come in one piece. It ends the stage's rest.
func (s *stage) room() (int, error) {
	if err := s.awake(); err != nil {
		return 0, err
	}
	if s.size == s.start+window {
		s.lap(s.size)
	}
	return min(window-s.waiting(), int(s.start+window-s.size)), nil
}

// came takes note of n bytes behind those that were there.
func (s *stage) came(n int) int {
	n = max(n, 0)
	s.size += int64(n)
	s.used += n
	return n
}

// fill takes what is in the pipe, as far as there is room. EAGAIN means that the pipe is empty.
func (s *stage) fill(pipe int) (int, error) {
	for n := 0; ; {
		room, err := s.room()
		if room <= 0 {
			return n, err
		}
		k, err := unix.Splice(pipe, nil, s.fd, nil, room, unix.SPLICE_F_NONBLOCK)
		n += s.came(int(k))
		if int(k) < room {
			if n > 0 {
				err = nil // it is told the next time
			}
			return n, err
		}
	}
}

// put adds bytes that did not come through a pipe, for which there is room.
func (s *stage) put(data []byte) error {
	for len(data) > 0 {
		room, err := s.room()
		if err != nil {
			return err
		}
		n, err := unix.Write(s.fd, data[:min(len(data), room)])
		data = data[s.came(n):]
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return nil
}

// from is what came from the stream position pos on, in a stage that is awake. It is good until more comes or the stage rests.
func (s *stage) from(pos int64) []byte {
	at := pos - s.start
	if at < 0 { // it came in the lap before
		at += window
	}
	return s.area[at : at+s.size-pos : at+s.size-pos]
}

// waits is what is not in the log. The stage is awake.
func (s *stage) waits() []byte { return s.from(atomic.LoadInt64(&s.rec.done)) }

// begin notes a batch of n bytes before its first byte is written to the log.
func (s *stage) begin(n int, at, offset int64) {
	s.rec.at, s.rec.offset, s.rec.was = at, offset, int64(s.lineNow())
	atomic.StoreInt64(&s.rec.end, atomic.LoadInt64(&s.rec.done)+int64(n))
}

// commit ends the batch: it is in the log, whole.
func (s *stage) commit() {
	atomic.StoreInt64(&s.rec.done, atomic.LoadInt64(&s.rec.end))
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
