package docker

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// A process that the kernel kills for want of memory makes two events in containerd's shim, from two sources: the exit
// and the OOM. dockerd tells them, and what it says of the container, as they come. So an exit by a SIGKILL that nobody
// here has sent is held until the other event comes, or has had the time to.

// oomWait is how long an exit waits for the word that it was an OOM kill.
// That takes no time, but where memory has run out the machine may have none.
const oomWait = 4 * time.Second

// killedCode is what dockerd gives for a SIGKILL.
const killedCode = 128 + int32(unix.SIGKILL)

// mayBeOOM says whether an exit may turn out to be an OOM kill.
func (e *Engine) mayBeOOM(key pod.Key, exit pod.Exit) bool {
	is, ok := e.objects.get(key)
	return ok && is.exit == nil && !is.killed && exit.Code == killedCode && !exit.OOMKilled
}

// hold keeps an exit back. One that is still held when the watch ends is found by the next, as all are.
func (w *watcher) hold(ctx context.Context, key pod.Key, exit pod.Exit) {
	w.held[key] = exit
	time.AfterFunc(w.engine.oomWait, func() {
		select {
		case w.late <- key:
		case <-ctx.Done():
		}
	})
}

// release tells an exit that was held, if it was.
func (w *watcher) release(ctx context.Context, key pod.Key, oom bool) bool {
	exit, ok := w.held[key]
	if !ok {
		return true
	}
	delete(w.held, key)
	exit.OOMKilled = exit.OOMKilled || oom
	return w.exit(ctx, key, exit)
}
