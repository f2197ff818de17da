package worker

import (
	"errors"
	"fmt"
	"log"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/crilog"
	"gantry/internal/keeper/logdriver"
)

// feed is one FIFO of dockerd's.
type feed struct {
	N     int    `json:"n"`
	File  string `json:"file"`
	Begun bool   `json:"begun,omitempty"` // its stage was made
}

func (f feed) fifo() string  { return "fifo." + strconv.Itoa(f.N) }
func (f feed) stage() string { return f.fifo() + stageSuffix }

// How much a log says where dockerd may have lost something.
const (
	// What waits for its turn in dockerd's package bytespipe (below blockThreshold, and then a slice of
	// maxCap: 1e6 bytes each), and the buffers before and behind it (32 KiB of pools.Copy, 16 KiB of
	// logger.Copier).
	noteBroken = "gantry: dockerd ended while the container ran; what it had read, at most 2.1 MB a stream, may be missing here"
	noteLost   = "gantry: gantry-keeper was killed, all of it; up to 64 KiB of output may be missing here"
)

// feedFrom begins to log what comes from dockerd's FIFO at path file.
func (s *sink) feedFrom(file string) error {
	s.mu.Lock()
	for _, f := range s.Feeds {
		if f.File == file {
			s.mu.Unlock()
			return nil
		}
	}
	s.Made++
	f := feed{N: s.Made, File: file}
	s.mu.Unlock()
	fd, err := openFeed(file)
	if err != nil {
		return err
	}
	if err := s.keep(map[string]int{f.fifo(): fd}); err != nil {
		return err
	}
	s.mu.Lock()
	s.Feeds = append(s.Feeds, f)
	first := len(s.Feeds) == 1
	s.mu.Unlock()
	if err := s.save(); err != nil {
		return err
	}
	if first {
		s.turn.Lock()
		defer s.turn.Unlock()
		return s.begin()
	}
	// The log may wait for its disk; dockerd, which waits for this answer, need not.
	go s.advance(func(fs []feed) bool { return len(fs) > 1 })
	return nil
}

// openFeed opens dockerd's FIFO. It is kept read-write, so that what is in it outlives dockerd.
func openFeed(file string) (int, error) {
	fd, err := unix.Open(file, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", file, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		_ = unix.Close(fd)
		return -1, errors.Join(fmt.Errorf("open %s: no FIFO", file), err)
	}
	return fd, nil
}

// begin makes a stream of the first feed, if there is one. The caller holds turn.
func (s *sink) begin() error {
	s.mu.Lock()
	if len(s.Feeds) == 0 || s.current != nil {
		s.mu.Unlock()
		return nil
	}
	f := s.Feeds[0]
	stage, ok := s.held[f.stage()]
	source := s.held[f.fifo()]
	lost, broken, open := f.Begun && !ok, s.Broken, s.Open
	s.mu.Unlock()
	if !ok {
		var err error
		if stage, err = s.newStage(f, lost); err != nil {
			return err
		}
	}
	own, err := unix.FcntlInt(uintptr(stage), unix.F_DUPFD_CLOEXEC, 0) // the stream closes it
	if err != nil {
		return fmt.Errorf("open stage: %w", err)
	}
	st, err := openStage(own)
	if err != nil {
		_ = unix.Close(own)
		return err
	}
	if !ok && !lost && !broken {
		st.rec.open = int64(open)
	}
	s.log.bounds.dropped.Add(st.droppedBytes()) // by a worker before
	r := &stream{
		name: crilog.Stream(f.File), format: frames{st}, log: s.log, via: [2]int{-1, -1}, st: st,
		logged: s.logged,
	}
	if r.src, r.fifo, err = openFIFO(source, f.File); err != nil {
		return fmt.Errorf("open %s: %w", f.File, err)
	}
	if r.rc, err = r.src.SyscallConn(); err != nil {
		return err
	}
	s.mu.Lock()
	s.Feeds[0].Begun, s.current = true, r
	s.mu.Unlock()
	err = s.save() // else a successor that finds no stage does not say that it is lost
	r.recover()
	r.start(&s.pumps)
	return err
}

// newStage makes a feed's stage, which begins with what the log has to say about the end of the feed
// before. dockerd begins one also to read the log of a container that has ended: then there is nothing.
func (s *sink) newStage(f feed, lost bool) (int, error) {
	fd, err := newStage(f.stage())
	if err != nil {
		return -1, err
	}
	s.mu.Lock()
	var prelude []byte
	switch {
	case lost:
		prelude = preludeOf(0, noteLost)
	case s.Broken:
		prelude = preludeOf(s.Open, noteBroken)
	}
	s.mu.Unlock()
	if _, err := unix.Pwrite(fd, prelude, recordSize); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make stage: %w", err)
	}
	return fd, s.keep(map[string]int{f.stage(): fd})
}

// preludeOf ends unfinished lines, so that the next does not continue them, and says what is to be said.
func preludeOf(open logdriver.Open, note string) []byte {
	var out []byte
	now := time.Now().UnixNano()
	for _, source := range []crilog.Stream{crilog.Stdout, crilog.Stderr} {
		if open&logdriver.Of(source) != 0 {
			out = logdriver.Append(out, &logdriver.Entry{Source: source, Time: now})
		}
	}
	if note != "" {
		out = logdriver.Append(out, &logdriver.Entry{Source: crilog.Stderr, Time: now, Line: []byte(note)})
	}
	return out
}

// logged notes with a batch whose line it left unfinished, and wakes those who follow the log.
func (s *sink) logged(st *stage, raw []byte) {
	st.rec.open = int64(logdriver.Open(st.rec.open).After(raw))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wake()
}

// wake tells those who follow the log to look again. The caller holds s.mu.
func (s *sink) wake() {
	close(s.grown)
	s.grown = make(chan struct{})
}

// advance ends feeds as long as more says so, and begins what comes after them.
func (s *sink) advance(more func(feeds []feed) bool) {
	s.turn.Lock()
	defer s.turn.Unlock()
	for {
		s.mu.Lock()
		on := len(s.Feeds) > 0 && more(s.Feeds)
		s.mu.Unlock()
		if !on {
			return
		}
		s.endFirst(true)
		if err := s.begin(); err != nil {
			log.Printf("log %s: %v", s.Key, err)
			return
		}
	}
}

// endFirst logs what the first feed holds and forgets it. The caller holds turn.
func (s *sink) endFirst(broken bool) {
	s.mu.Lock()
	f, r := s.Feeds[0], s.current
	s.mu.Unlock()
	open, dropped := logdriver.Open(0), int64(0)
	if r != nil {
		r.finish()
		r.mu.Lock()
		if r.st != nil {
			open, dropped = logdriver.Open(r.st.rec.open), r.st.droppedBytes()
			if n := r.st.waiting(); n > 0 {
				log.Printf("log %s: dockerd left %d bytes of a frame that it did not finish", s.Key, n)
			}
		}
		r.mu.Unlock()
		r.close()
	}
	s.mu.Lock()
	s.Feeds, s.current = append([]feed(nil), s.Feeds[1:]...), nil
	s.Broken, s.Open = broken, open
	s.Dropped += dropped
	s.wake()
	s.mu.Unlock()
	if err := s.save(); err != nil {
		log.Print(err)
	}
	s.drop(f.fifo(), f.stage())
}

// stopFrom ends a feed that dockerd has ended: everything in it is logged when this returns.
func (s *sink) stopFrom(file string) {
	s.advance(func(fs []feed) bool { // those before it were not ended
		for _, f := range fs[1:] {
			if f.File == file {
				return true
			}
		}
		return false
	})
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	first := len(s.Feeds) > 0 && s.Feeds[0].File == file
	s.mu.Unlock()
	if !first {
		return
	}
	s.endFirst(false)
	if err := s.begin(); err != nil {
		log.Printf("log %s: %v", s.Key, err)
	}
}

// settle logs what the current feed holds at this moment.
func (s *sink) settle() {
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	r := s.current
	s.mu.Unlock()
	if r != nil {
		r.finish()
	}
}

// recoverFeeds opens FIFOs that a holder took with it, as far as dockerd still has them.
func (s *sink) recoverFeeds() {
	var feeds []feed
	for _, f := range s.Feeds {
		if _, ok := s.held[f.fifo()]; !ok {
			fd, err := openFeed(f.File)
			if err == nil {
				err = s.keep(map[string]int{f.fifo(): fd})
			}
			if err != nil {
				log.Printf("recover log %s: %v", s.Key, err)
				s.Broken = true
				continue
			}
		}
		feeds = append(feeds, f)
	}
	s.Feeds = feeds
	s.turn.Lock()
	err := s.begin()
	s.turn.Unlock()
	if err != nil {
		log.Printf("recover log %s: %v", s.Key, err)
	}
	if len(feeds) > 1 {
		go s.advance(func(fs []feed) bool { return len(fs) > 1 })
	}
}
