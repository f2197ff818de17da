package worker

import (
	"bytes"
	"log"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

// lineState is where a stream is in a line after what was logged or dropped of it.
type lineState int

const (
	// lineOpen: the last entry in the log is tagged P, so that the next one continues it.
	lineOpen lineState = 1
	// lineCut: the line has bytes to come and some before them were dropped.
	lineCut lineState = 2
)

// logged is the state after raw was logged.
func (lineState) logged(raw []byte) lineState {
	if raw[len(raw)-1] == '\n' {
		return 0
	}
	return lineOpen
}

// dropped is the state after raw was dropped. Where the log has the beginning of the line whose end that was, the
// next line ends it: up to its newline it is dropped, too.
func (was lineState) dropped(raw []byte) lineState {
	if raw[len(raw)-1] == '\n' && was&lineOpen == 0 {
		return 0
	}
	return was | lineCut
}

// resume says what of raw, which the log has room for again, is dropped to begin at a line's start. Where the log has
// the beginning of a line whose rest was dropped, a newline is next: the entry of it alone ends that line.
func (was lineState) resume(raw []byte) (drop int) {
	i := bytes.IndexByte(raw, '\n')
	switch {
	case was == 0:
		return 0
	case was == lineOpen: // nothing is missing of it
		return 0
	case i < 0:
		return len(raw)
	case was&lineOpen != 0:
		return i
	}
	return i + 1
}

// bucket is a rate of bytes: at most a second's worth is saved up, and one batch may overdraw it.
type bucket struct {
	rate int64
	have int64
	at   time.Time
}

// take says whether n bytes may pass.
func (b *bucket) take(n int, now time.Time) bool {
	if b.at.IsZero() {
		b.have, b.at = b.rate, now
	}
	if more := int64(now.Sub(b.at).Seconds() * float64(b.rate)); more > 0 {
		b.have, b.at = min(b.rate, b.have+more), now
	}
	if b.have <= 0 {
		return false
	}
	b.have -= int64(n)
	return true
}

// reportAfter is how long after something was dropped it is told how much that is by then.
const reportAfter = time.Second

// bounds are those of a log and what they have led to.
type bounds struct {
	wire.LogBounds
	bucket bucket    // guarded by the log's mu
	full   time.Time // when the file could first not be written; guarded by the log's mu
	fails  time.Time // when it last could not be written; guarded by the log's mu

	dropped   atomic.Int64        // bytes of all streams
	report    func(dropped int64) // tells somebody; may be nil
	reporting atomic.Bool         // report is going to be called
}

// failed takes note that the file can't be written, and says whether that is new. A disk that is full has room for a
// few bytes now and then: it is full until nothing has failed for as long as output waits for it.
func (b *bounds) failed(now time.Time, limit time.Duration) bool {
	fresh := now.Sub(b.fails) > max(limit, calm)
	if fresh {
		b.full = now
	}
	b.fails = now
	return fresh
}

// calm is how long nothing must fail at least, until a failure is a new one.
const calm = 10 * time.Second

// batch logs or drops what is ready of a stream, without ever dividing a line: what is dropped of one is all of it, or all
// that is not logged yet. The log's mu is held.
func (l *logFile) batch(s *stream, raw, out []byte) {
	for len(raw) > 0 {
		now := time.Now()
		was := s.st.lineNow()
		n := len(raw)
		if !l.room(n, now) {
			l.drop(s, raw, s.dropped(was, raw))
			return
		}
		d, n := s.resume(was, raw)
		if d > 0 {
			l.drop(s, raw[:d], s.dropped(was, raw[:d]))
			raw = raw[d:]
			continue
		}
		offset, known := l.sizeWithin(l.bounds.FullWait)
		if !known {
			l.drop(s, raw, s.dropped(was, raw))
			return
		}
		s.st.begin(n, now.UnixNano(), offset)
		s.st.setLine(s.kept(was, raw[:n]))
		text := s.entries(out[:0], now, raw[:n], was)
		written := l.write(text, l.bounds.FullWait)
		if written == len(text) {
			lost := s.lost(was, raw[:n])
			s.commit(raw[:n])
			l.lose(s, lost)
			raw = raw[n:]
			continue
		}
		n = l.abandon(s, raw[:n], text[:written], was)
		raw = raw[n:]
		l.drop(s, raw, s.dropped(s.st.lineNow(), raw))
		return
	}
}

// room says whether the bounds let n bytes of output pass.
func (l *logFile) room(n int, now time.Time) bool {
	if l.bounds.Size > 0 {
		if size, err := l.size(); err == nil && size >= l.bounds.Size {
			return false
		}
	}
	if l.bounds.Rate > 0 {
		l.bounds.bucket.rate = l.bounds.Rate
		return l.bounds.bucket.take(n, now)
	}
	return true
}

// abandon ends a batch of which written is in the file: what whole entries are there stay and are committed, and of how many
// bytes of raw that is it returns. An entry that is there in part goes again, because its reader would take the next
// one for its rest.
func (l *logFile) abandon(s *stream, raw, written []byte, was lineState) int {
	whole := bytes.LastIndexByte(written, '\n') + 1
	_, _, offset := s.st.pending()
	if err := unix.Ftruncate(l.fd, offset+int64(whole)); err != nil {
		log.Printf("%s: %v", l.path, err)
	}
	n := s.skip(raw, bytes.Count(written[:whole], []byte{'\n'}))
	if n == 0 {
		s.st.shrink(0, was)
		return 0
	}
	s.st.shrink(n, s.kept(was, raw[:n]))
	s.commit(raw[:n])
	return n
}

// drop ends what is not to be logged.
func (l *logFile) drop(s *stream, raw []byte, line lineState) {
	if len(raw) == 0 {
		return
	}
	n := s.output(raw)
	s.st.drop(len(raw), n, line)
	l.count(n)
}

// lose counts what is missing of a batch that is in the log.
func (l *logFile) lose(s *stream, n int) {
	if n > 0 {
		s.st.lose(n)
		l.count(n)
	}
}

// count tells before long how much was dropped.
func (l *logFile) count(n int) {
	l.bounds.dropped.Add(int64(n))
	if l.bounds.report != nil && l.bounds.reporting.CompareAndSwap(false, true) {
		time.AfterFunc(reportAfter, func() {
			l.bounds.reporting.Store(false)
			l.bounds.report(l.bounds.dropped.Load())
		})
	}
}
