package worker

import (
	"errors"
	"log"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/crilog"
)

// format makes log entries of the bytes that a stream reads. What it makes depends on its arguments alone,
// so that a batch that was interrupted can be made again byte for byte.
type format interface {
	// ready says how many bytes of raw can be logged without waiting for more, as far as the entries fit
	// into room bytes.
	ready(raw []byte, room int) int
	// entries appends to dst the entries of raw, logged at that moment, where the lines were like that before.
	entries(dst []byte, at time.Time, raw []byte, was lineState) []byte
	// flushes says whether a rest that is not ready is logged at the container's end.
	flushes() bool
	lines
}

// lines is what of a format a bounded log needs to know, so that no line is divided. was is what was left by the batch
// before.
type lines interface {
	// kept and dropped are what is left when raw was logged, or dropped.
	kept(was lineState, raw []byte) lineState
	dropped(was lineState, raw []byte) lineState
	// resume says what of raw, which the log has room for again, is to be dropped first, or how much of it may
	// be logged as one batch.
	resume(was lineState, raw []byte) (drop, take int)
	// skip is how much of raw its first entries were made of.
	skip(raw []byte, entries int) int
	// output is how many bytes a container wrote where raw came.
	output(raw []byte) int
	// lost is how many of them are not in the entries of raw.
	lost(was lineState, raw []byte) int
}

// plain is the output of a container as it wrote it.
type plain struct{ name crilog.Stream }

func (p plain) ready(raw []byte, room int) int { return crilog.Ready(raw, room) }

func (p plain) entries(dst []byte, at time.Time, raw []byte, _ lineState) []byte {
	return crilog.Format(dst, at, p.name, raw)
}

func (p plain) flushes() bool { return true }

func (p plain) kept(was lineState, raw []byte) lineState    { return was.logged(raw) }
func (p plain) dropped(was lineState, raw []byte) lineState { return was.dropped(raw) }

func (p plain) resume(was lineState, raw []byte) (drop, take int) {
	if drop = was.resume(raw); drop > 0 {
		return drop, 0
	}
	if was == lineOpen|lineCut { // the newline that ends the line which was cut
		return 0, 1
	}
	return 0, len(raw)
}

func (p plain) skip(raw []byte, entries int) int { return crilog.Skip(raw, entries) }
func (p plain) output(raw []byte) int            { return len(raw) }
func (p plain) lost(lineState, []byte) int       { return 0 }

// stream moves one stream of a container from its FIFO or terminal through a stage into the log.
//
// Lock order: stream.mu before logFile.mu.
type stream struct {
	name crilog.Stream
	format
	log  *logFile
	src  *os.File // the FIFO, or the terminal's master
	rc   syscall.RawConn
	fifo *fifo  // nil with a terminal
	via  [2]int // terminal: pipe between master and stage, kept by the holder; else -1

	// logged, if set, is called with a batch that is in the log, before that is on record.
	logged func(st *stage, raw []byte)

	mu      sync.Mutex
	st      *stage // nil when closed
	viewers map[*viewer]int
	viewed  int64 // what viewers have got
	late    bool  // the batch of a dead worker is still to be completed
	pace    pace
	clock   clock
}

// buffers are borrowed while output moves; an idle container has none.
type buffers struct {
	raw [window / 2]byte
	out [2 * window]byte
}

var pool = sync.Pool{New: func() any { return new(buffers) }}

// start begins to read. What a predecessor left is logged first: a poll may stay silent about it.
func (s *stream) start(wg *sync.WaitGroup) {
	round := func(fd uintptr) bool {
		s.mu.Lock()
		wait := s.pace.next(s.clock.time())
		s.mu.Unlock()
		if wait > 0 {
			s.clock.wait(wait)
		}
		return s.pull(int(fd), -1)
	}
	wg.Go(func() {
		if s.fifo != nil {
			s.fifo.rounds(round)
			return
		}
		_ = s.rc.Read(round)
	})
}

// pull moves output until none is there, or until the stream's position limit if that is not
// negative. It returns true when the stream was closed.
func (s *stream) pull(fd int, limit int64) (closed bool) {
	for moved := 0; ; {
		s.mu.Lock()
		if s.st == nil {
			s.mu.Unlock()
			return true
		}
		// A predecessor may have died with a full stage: then nothing comes at first, and there is more.
		before := s.st.waiting()
		n, err := s.fill(fd)
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EINTR) {
			log.Printf("%s: read output: %v", s.log.path, err)
		}
		moved += n
		s.show()
		s.append(false)
		reached := limit >= 0 && s.st.size >= limit
		again := n > 0 || s.st.waiting() < before || errors.Is(err, unix.EINTR)
		if again && !reached {
			s.mu.Unlock()
			continue
		}
		s.st.rest()
		s.pace.end(moved, s.clock.time())
		s.mu.Unlock()
		return false
	}
}

// fill brings more into the stage. A terminal's output comes through a pipe, because a splice has a
// pipe at one end.
func (s *stream) fill(fd int) (int, error) {
	if s.via[0] < 0 {
		return s.st.fill(fd)
	}
	n, err := s.st.fill(s.via[0])
	if !errors.Is(err, unix.EAGAIN) {
		return n, err
	}
	_, err = unix.Splice(fd, nil, s.via[1], nil, window, unix.SPLICE_F_NONBLOCK)
	if errors.Is(err, unix.EINVAL) {
		return s.copy(fd)
	}
	if err != nil {
		return 0, err
	}
	return s.st.fill(s.via[0])
}

// copy reads a terminal where the kernel cannot splice from one (before Linux 6.5). If the worker
// is killed between the two calls, these bytes are lost.
func (s *stream) copy(fd int) (int, error) {
	if s.st.waiting() > window/2 {
		return 0, nil
	}
	b := pool.Get().(*buffers)
	defer pool.Put(b)
	n, err := unix.Read(fd, b.raw[:])
	if n <= 0 {
		return 0, err
	}
	return n, s.st.put(b.raw[:n])
}

// append logs what is ready; with flush also a line that is not finished.
func (s *stream) append(flush bool) {
	if s.st.waiting() == 0 {
		return
	}
	if err := s.st.awake(); err != nil {
		log.Printf("%s: %v", s.log.path, err)
		return
	}
	for s.late {
		s.recoverLate()
	}
	b := pool.Get().(*buffers)
	defer pool.Put(b)
	for s.st.waiting() > 0 {
		raw := s.st.waits()
		n := s.ready(raw, len(b.out))
		if n == 0 && flush && s.flushes() {
			n = len(raw)
		}
		if n == 0 {
			return
		}
		s.log.append(s, raw[:n], b.out[:0])
	}
}

// recover completes the batch that a dead worker left half appended: the same bytes with the same
// stamp, without the part that the log already has. Where nobody can say what it has, that is done later.
func (s *stream) recover() {
	n, at, offset := s.st.pending()
	if n <= 0 || n > s.st.waiting() {
		return
	}
	b := pool.Get().(*buffers)
	defer pool.Put(b)
	raw := s.st.waits()[:n]
	if s.st.drops() {
		if !s.st.hasLine() {
			s.st.setLine(s.dropped(s.st.lineNow(), raw))
		}
		s.st.commit()
		return
	}
	if s.late = !s.log.answers(false); s.late {
		return
	}
	was := lineState(s.st.rec.was)
	out := s.entries(b.out[:0], time.Unix(0, at), raw, was)
	s.st.setLine(s.kept(was, raw))
	if !s.log.tryComplete(s, raw, out, was) {
		return // the rest is logged, or dropped, when the stream is read
	}
	had := s.log.complete(out, offset)
	s.commit(raw)
	s.log.lose(s, s.lost(was, raw))
	log.Printf("%s: completed a batch of which %d of %d bytes were written", s.log.path, had, len(out))
}

// recoverLate does what recover could not, or drops that batch when the output has waited as long as it may.
func (s *stream) recoverLate() {
	if s.log.answers(true) {
		s.recover()
		return
	}
	s.late = false
	n, _, _ := s.st.pending()
	raw := s.st.waits()[:n]
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	s.log.drop(s, raw, s.dropped(lineState(s.st.rec.was), raw))
}

// commit ends the batch that raw was.
func (s *stream) commit(raw []byte) {
	if s.logged != nil {
		s.logged(s.st, raw)
	}
	s.st.commit()
}

// finish logs what the stream holds at this moment, all of it, and not what a process that lives on
// writes meanwhile.
func (s *stream) finish() {
	_ = s.rc.Control(func(fd uintptr) { s.pull(int(fd), s.reach(int(fd))) })
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.st != nil {
		s.append(true)
		s.st.rest()
	}
}

// reach is the stream's position behind all that it holds at this moment. While it is found out, nothing moves: what
// left the FIFO after the stage was looked at, and before the FIFO is, would be missing in both.
func (s *stream) reach(fd int) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.st == nil {
		return 0
	}
	if s.via[0] >= 0 {
		return s.st.size + 1<<20 // what a terminal holds cannot be asked; it is far less
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		n = 0
	}
	return s.st.size + int64(n)
}

// close ends the stream. What was not read is gone with the container.
func (s *stream) close() {
	s.mu.Lock()
	if s.st != nil {
		s.st.close()
		s.st = nil
	}
	for v := range s.viewers {
		v.end(errGone)
	}
	s.viewers = nil
	s.mu.Unlock()
	if s.fifo != nil {
		_ = s.fifo.Close()
	}
	_ = s.src.Close()
	if s.via[0] >= 0 {
		_ = unix.Close(s.via[0])
		_ = unix.Close(s.via[1])
	}
}
