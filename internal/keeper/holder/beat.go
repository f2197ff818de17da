package holder

import (
	"log"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

// A worker that is stopped, or stuck, writes no log and answers nobody. It is asked at every beat, and
// replaced when it has left so many unanswered; its successor loses nothing. One that still takes over
// what another left has longer. Beats are counted, not time: a machine that slept is no reason.
const (
	beatTime   = 5 * time.Second
	mayMiss    = 4
	mayMissNew = 60
)

// pulse is what is known of the worker's answers to beats.
type pulse struct {
	heard  bool // it has answered once
	missed int
}

// beat asks the worker for a sign of life.
func (h *holder) beat() {
	if h.link == nil {
		return
	}
	limit := mayMissNew
	if h.pulse.heard {
		limit = mayMiss
	}
	if h.pulse.missed >= limit && h.worker > 0 {
		log.Printf("worker %d has not answered for %v and is replaced", h.worker, time.Duration(h.pulse.missed)*beatTime)
		h.pulse = pulse{}
		_ = unix.Kill(h.worker, unix.SIGKILL)
		return
	}
	h.pulse.missed++
	h.send(&wire.Frame{Op: wire.OpBeat})
}
