package image

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// syncer writes a file system to the disk, once for everybody who waits at the same time.
type syncer struct {
	sync     func() error // writes the whole file system out
	off      bool
	deadline time.Duration

	mu      sync.Mutex
	written uint64        // guarded by mu: number of things that were made
	synced  uint64        // guarded by mu: how many of them are on the disk for certain
	running chan struct{} // guarded by mu: closed when the sync under way ends; nil when none is
	err     error         // guarded by mu: of the last sync
}

func newSyncer(sync func() error, off bool, deadline time.Duration) *syncer {
	return &syncer{sync: sync, off: off, deadline: deadline}
}

// dirty says that something was made which a later wait must cover.
func (s *syncer) dirty() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.written++
}

// wait returns when everything that was made before is on the disk. A disk that takes longer than
// the deadline is ErrUnavailable; the sync goes on.
func (s *syncer) wait(ctx context.Context) error {
	if s.off {
		return nil
	}
	late := time.NewTimer(s.deadline)
	defer late.Stop()
	s.mu.Lock()
	want := s.written
	for s.synced < want {
		if s.running == nil {
			s.running = make(chan struct{})
			go s.run(s.written, s.running)
		}
		running := s.running
		s.mu.Unlock()
		select {
		case <-running:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late.C:
			return fmt.Errorf("writing the image to the disk takes longer than %s: %w", s.deadline, errdefs.ErrUnavailable)
		}
		s.mu.Lock()
		if s.err != nil && s.synced < want {
			err := s.err
			s.mu.Unlock()
			return fmt.Errorf("sync file system: %w", err)
		}
	}
	s.mu.Unlock()
	return nil
}

func (s *syncer) run(covers uint64, done chan struct{}) {
	err := s.sync()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err = err; err == nil {
		s.synced = max(s.synced, covers)
	}
	s.running = nil
	close(done)
}
