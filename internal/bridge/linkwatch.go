package bridge

import (
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// linkWatch tells when links are gone. It listens to the kernel only while somebody waits.
type linkWatch struct {
	mu      sync.Mutex
	waiting map[string]chan struct{} // closed when the link of that name goes; guarded by mu
	stop    chan struct{}            // ends the subscription; nil without one; guarded by mu
}

// gone returns what is closed when the link of that name goes. One that went before is not told of.
// Where the kernel cannot be listened to nothing is ever told. The caller ends the waiting with forget.
func (w *linkWatch) gone(name string) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting == nil {
		w.waiting = make(map[string]chan struct{})
	}
	done := make(chan struct{})
	w.waiting[name] = done
	if w.stop == nil {
		w.subscribe()
	}
	return done
}

func (w *linkWatch) forget(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiting, name)
	if len(w.waiting) == 0 && w.stop != nil {
		close(w.stop)
		w.stop = nil
	}
}

// subscribe begins to listen. w.mu is held.
func (w *linkWatch) subscribe() {
	updates, stop := make(chan netlink.LinkUpdate), make(chan struct{})
	err := netlink.LinkSubscribeWithOptions(updates, stop, netlink.LinkSubscribeOptions{ErrorCallback: func(error) {}})
	if err != nil {
		return
	}
	w.stop = stop
	go func() {
		for u := range updates {
			if u.Header.Type == unix.RTM_DELLINK {
				w.told(u.Attrs().Name)
			}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.stop == stop { // it broke, as it does when more happens than is read
			close(stop)
			w.stop = nil
		}
	}()
}

func (w *linkWatch) told(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if done, ok := w.waiting[name]; ok {
		close(done)
		delete(w.waiting, name)
	}
}
