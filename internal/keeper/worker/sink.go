package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"gantry/internal/atomicfile"
	"gantry/internal/keeper/logdriver"
	"gantry/internal/keeper/wire"
)

// sink is the log of a container that dockerd runs. dockerd reads the container's output and writes it in
// frames into a FIFO that it has made; a sink moves it from there through a stage into the log, as a
// stream of the keeper's own containers does. A dockerd that was restarted comes with another FIFO: what
// it had put into the one before is logged first.
//
// Lock order: turn before sink.mu before stream.mu.
type sink struct {
	w   *Worker
	dir string
	log *logFile

	turn  sync.Mutex // held while a stream is begun or ended, and while one drains
	pumps sync.WaitGroup

	mu        sync.Mutex
	savedSink                // guarded by mu
	held      map[string]int // guarded by mu; descriptors, by the name without the key
	current   *stream        // guarded by mu; of Feeds[0] once that has begun
	grown     chan struct{}  // guarded by mu; closed when the log has grown or the last feed has ended
}

// savedSink is log.json.
type savedSink struct {
	wire.Log
	Feeds []feed `json:"feeds,omitempty"` // the first is being logged, the others wait for its end
	Made  int    `json:"made,omitempty"`  // feeds that there ever were
	// Broken says that dockerd did not end the last feed, Open whose line that left unfinished.
	Broken bool           `json:"broken,omitempty"`
	Open   logdriver.Open `json:"open,omitempty"`
	// Dropped are the bytes of output that bounds kept out of the log while feeds had it that have ended.
	Dropped int64 `json:"dropped,omitempty"`
}

const sinkRecord = "log.json"

func (w *Worker) newSink(s savedSink) *sink {
	one := &sink{
		w: w, dir: w.sinkDir(s.Key), savedSink: s, held: map[string]int{}, grown: make(chan struct{}),
		log: &logFile{path: s.LogPath, fd: -1, stop: make(chan struct{}), bounds: bounds{LogBounds: s.Bounds}},
	}
	one.log.bounds.dropped.Store(s.Dropped)
	one.log.bounds.report = func(dropped int64) { w.publish(wire.Event{Key: s.Key, LogDropped: dropped}) }
	return one
}

func (w *Worker) sinkDir(key string) string { return filepath.Join(w.opt.StateDir, "l", key) }

func (w *Worker) sink(key string) *sink {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sinks[key]
}

// openLog makes the sink of a container, and the log. One that exists is no error.
func (w *Worker) openLog(req wire.Log) error {
	switch {
	case !validKey(req.Key):
		return wire.Errorf(wire.CodeInvalid, "container key %q: letters, digits and ._-+ only", req.Key)
	case req.LogPath != "" && !filepath.IsAbs(req.LogPath):
		return wire.Errorf(wire.CodeInvalid, "container %s: log path %q is not absolute", req.Key, req.LogPath)
	}
	if err := w.servePlugin(req.Socket); err != nil {
		return err
	}
	if w.sink(req.Key) != nil {
		return nil
	}
	s := w.newSink(savedSink{Log: req})
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("log directory: %w", err)
	}
	if err := s.save(); err != nil {
		return err
	}
	if err := s.attach(false); err != nil {
		_ = os.RemoveAll(s.dir)
		return err
	}
	w.mu.Lock()
	w.sinks[req.Key] = s
	w.mu.Unlock()
	return nil
}

// attach opens the log, if a holder does not have it.
func (s *sink) attach(recovered bool) error {
	s.mu.Lock()
	fd, ok := s.held[fileLog]
	s.mu.Unlock()
	if ok || s.LogPath == "" {
		if ok {
			s.log.fd = fd
		}
		return nil
	}
	open := openLog
	if recovered {
		open = openLost
	}
	fd, fresh, err := open(s.LogPath)
	if err != nil {
		if recovered { // its output is dropped until somebody has the log reopened
			log.Printf("recover log %s: %v", s.Key, err)
			return nil
		}
		return err
	}
	s.log.fd = fd
	if err := s.keep(map[string]int{fileLog: fd}); err != nil {
		removeMade(s.LogPath, fresh)
		return err
	}
	return nil
}

// save puts the sink on record. The caller does not hold s.mu.
func (s *sink) save() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, err := json.Marshal(s.savedSink)
	if err != nil {
		return fmt.Errorf("record log: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(s.dir, sinkRecord), data, 0o600); err != nil {
		return fmt.Errorf("record log: %w", err)
	}
	return nil
}

// keep gives the holder descriptors of the sink, by name.
func (s *sink) keep(files map[string]int) error {
	m, fds := wire.Names{}, []int{}
	s.mu.Lock()
	for name, fd := range files {
		m.Names, fds = append(m.Names, s.Key+"/"+name), append(fds, fd)
		s.held[name] = fd
	}
	s.mu.Unlock()
	return s.w.tell(wire.OpHold, m, fds...)
}

// drop gives descriptors back, here and at the holder. The log closes its own.
func (s *sink) drop(names ...string) {
	m := wire.Names{}
	s.mu.Lock()
	for _, name := range names {
		fd, ok := s.held[name]
		if !ok {
			continue
		}
		delete(s.held, name)
		m.Names = append(m.Names, s.Key+"/"+name)
		if name != fileLog {
			_ = unix.Close(fd)
		}
	}
	s.mu.Unlock()
	if err := s.w.tell(wire.OpDrop, m); err != nil {
		log.Print(err)
	}
}

// closeLog forgets a container's log, whose file stays. An absent one is no error.
func (w *Worker) closeLog(key string) error {
	s := w.sink(key)
	if s == nil {
		return nil
	}
	s.log.giveUp()
	s.turn.Lock()
	defer s.turn.Unlock()
	s.mu.Lock()
	r := s.current
	names := make([]string, 0, len(s.held))
	for name := range s.held {
		names = append(names, name)
	}
	s.mu.Unlock()
	if r != nil {
		r.finish()
		r.close()
	}
	s.pumps.Wait()
	s.log.close()
	s.drop(names...)
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove log directory: %w", err)
	}
	w.mu.Lock()
	delete(w.sinks, key)
	w.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Feeds, s.current = nil, nil
	s.wake()
	return nil
}

// recoverSinks takes over the logs of a dead worker, and what the holder kept of them.
func (w *Worker) recoverSinks(files map[string]map[string]int) error {
	keys, err := os.ReadDir(filepath.Join(w.opt.StateDir, "l"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("state directory: %w", err)
	}
	for _, d := range keys {
		key := d.Name()
		var saved savedSink
		err := readJSON(filepath.Join(w.sinkDir(key), sinkRecord), &saved)
		if errors.Is(err, errUnread) {
			return err
		}
		if err != nil {
			log.Printf("recover log %s: %v", key, err)
			continue
		}
		s := w.newSink(saved)
		for name, fd := range files[key] {
			s.held[name] = fd
		}
		delete(files, key)
		w.sinks[key] = s
		if err := s.attach(true); err != nil {
			return err
		}
		s.recoverFeeds()
	}
	return nil
}
