package bridge

import (
	"context"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
)

// A link that could not be removed is tried again, with pauses that double.
const (
	firstPause = time.Second
	longPause  = time.Minute
)

// namespaceTime is how long the kernel may take to remove a link with a pod's namespace.
const namespaceTime = 250 * time.Millisecond

// leave takes back what others could use, an attachment's host ports, and records that the rest is to
// go. It says whether there is a rest. The kernel lets whoever removes a veth pair wait until no packet
// can be on its way, 20 ms and more: that must keep no caller of DEL.
func (s *segment) leave(id attachmentID) (rest bool, err error) {
	s.mu.Lock()
	rec := s.records[id]
	s.mu.Unlock()
	if rec == nil {
		return false, s.remove(id)
	}
	if err = s.closePorts(rec.Ports); err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	going := *rec
	going.Ports, going.Leaving = nil, true
	if err = s.writeRecord(id, &going); err != nil {
		return false, err
	}
	s.claims.remove(id, rec.Ports)
	s.records[id] = &going
	s.hook("bridge/leaving")
	return true, nil
}

// leavers are the attachments that have left and are not gone.
func (s *segment) leavers() []attachmentID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []attachmentID
	for id, r := range s.records {
		if r.Leaving {
			all = append(all, id)
		}
	}
	return all
}

// finish removes what leave has left, and gives the attachment's lock back when it is gone or Close
// was called. The link goes with the pod's network namespace, and with those of other pods that end at
// the same time: that costs least, and keeps others who change links waiting least. Where it does not
// it is removed.
func (b *Bridge) finish(s *segment, id attachmentID, unlock func()) {
	defer unlock()
	b.awaitEnd(linkName(id))
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		err := s.remove(id)
		if err == nil {
			return
		}
		s.log.Warn("the link of a pod that has left could not be removed, trying again", "container", id.Container, "error", err)
		select {
		case <-time.After(pause):
		case <-b.closed:
			return
		}
	}
}

// awaitEnd waits until a link is gone, for a bounded time.
func (b *Bridge) awaitEnd(link string) {
	gone := b.links.gone(link)
	defer b.links.forget(link)
	if _, err := netlink.LinkByName(link); isNoLink(err) {
		return
	}
	select {
	case <-gone:
	case <-time.After(namespaceTime):
	case <-b.closed:
	}
}

// left waits for those who are leaving and says whether there were any.
func (b *Bridge) left(ctx context.Context, s *segment) bool {
	ids := s.leavers()
	for _, id := range ids {
		unlock, err := b.locks.Lock(ctx, id)
		if err != nil {
			return false
		}
		unlock()
	}
	return len(ids) > 0
}

// Close waits until the links of those who have left are gone, or ctx ends: the next process removes
// the others. No call may come after it.
func (b *Bridge) Close(ctx context.Context) error {
	b.once.Do(func() { close(b.closed) })
	gone := make(chan struct{})
	go func() {
		b.leaving.Wait()
		close(gone)
	}()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("links of pods that have left: %w", context.Cause(ctx))
	}
}
