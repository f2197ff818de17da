package worker

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"sort"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

// start lets a created container run. A worker may have died between the start and its record, so
// the record says first that a start may have happened.
func (w *Worker) start(key string) error {
	c, err := w.find(key)
	if err != nil {
		return err
	}
	c.mu.Lock()
	phase := c.Phase
	c.mu.Unlock()
	if phase == phaseRunning {
		return nil
	}
	if phase == phaseCreated {
		if err = c.save(phaseStarting); err != nil {
			return err
		}
	}
	w.reached(startIntent)
	if phase == phaseStarting {
		awaitOrphans("start", key)
	}
	if c.Restore != "" {
		err = c.restore(phase == phaseStarting)
	} else {
		err = c.invokeStart(phase == phaseStarting)
	}
	if err != nil {
		if saveErr := c.save(phaseCreated); saveErr != nil {
			log.Print(saveErr)
		}
		return fmt.Errorf("start container %s: %w", key, err)
	}
	w.reached(startRuntime)
	if err = c.save(phaseRunning); err != nil {
		return err
	}
	w.reached(startRecord)
	return nil
}

// invokeStart starts the container, by the runtime's program or without it. A start that was interrupted, by the end of a
// worker or of the runtime itself, may have been heard; one that was not is tried once more.
func (c *container) invokeStart(interrupted bool) error {
	if c.DirectStart {
		if err := c.startDirect(interrupted); !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	start := func() error {
		ctx, cancel := context.WithCancel(c.wanted)
		defer cancel()
		if interrupted {
			go c.cancelWhenHeard(ctx, cancel)
		}
		return invoke(ctx, c.Runtime, c.dir, [3]*os.File{}, "start", c.Key)
	}
	err := start()
	if unanswered(err) {
		interrupted = true
		if c.waitsForStart() {
			err = start()
		}
	}
	if err != nil && interrupted && c.goesOn() {
		return nil
	}
	return err
}

// hearLimit is how long a process that was told to go on may look as if it were not.
const hearLimit = 10 * time.Second

// goesOn says whether a process whose start may have been heard waits for it no more. Before it executes its program it
// looks as if it did, and yet there is nothing to be repeated: runc's answer is that the container runs.
func (c *container) goesOn() bool {
	const pause = 20 * time.Millisecond
	if !c.waitsForStart() {
		return true
	}
	for waited := time.Duration(0); waited < hearLimit && !c.heard() && startTime(c.Pid) == c.Began; waited += pause {
		if !sleep(c.wanted, pause) {
			break
		}
	}
	return !c.waitsForStart()
}

// cancelWhenHeard cancels a repeated start whose process goes on: runc's, told before, reads for ever what nobody
// writes any more. It leaves one that works the time to end.
func (c *container) cancelWhenHeard(ctx context.Context, cancel context.CancelFunc) {
	for !c.heard() {
		if !sleep(ctx, 20*time.Millisecond) {
			return
		}
	}
	if sleep(ctx, time.Second) {
		cancel()
	}
}

// sleep says whether all of d passed before ctx's end.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// heard says whether the created process is seen to run another program than the one in which it waited.
func (c *container) heard() bool {
	now := programOf(c.Pid)
	return c.Program != "" && now != "" && now != c.Program
}

// waitsForStart says whether the OCI runtime still calls the container created, or says nothing. It may do so of one
// whose start was heard, where the command that was killed had not taken the FIFO away.
func (c *container) waitsForStart() bool {
	if s := c.status(); s != "" && s != "created" {
		return false
	}
	if !c.heard() {
		return true
	}
	c.removeStartFIFO()
	return false
}

// status is what the OCI runtime calls the container's state; "" when it does not answer.
func (c *container) status() string {
	path := filepath.Join(c.dir, "state")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close(); _ = os.Remove(path) }()
	if err := invoke(c.wanted, c.Runtime, c.dir, [3]*os.File{nil, f, nil}, "state", c.Key); err != nil {
		return ""
	}
	return readStatus(path)
}

// signal sends a signal to the main process, through its pidfd, or to all of the container's
// cgroup. What has ended is no error.
func (w *Worker) signal(t wire.Target) error {
	if x := w.session(t.Key); x != nil {
		return x.kill()
	}
	c, err := w.find(t.Key)
	if err != nil {
		return err
	}
	sig := syscall.Signal(t.Signal)
	if t.Signal < 0 || t.Signal > 64 {
		return wire.Errorf(wire.CodeInvalid, "signal %d", t.Signal)
	}
	if t.All {
		killCgroup(c.CgroupPath, sig)
		w.reached(signalCgroup)
	}
	if t.All {
		return nil
	}
	if err := c.signal(sig); err != nil {
		return fmt.Errorf("signal container %s: %w", t.Key, err)
	}
	w.reached(signalSent)
	return nil
}

// signal sends a signal to the main process. It holds the lock, so that a delete does not close the
// pidfd under it.
func (c *container) signal(sig syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	pidfd, ok := c.held[filePidfd]
	if c.exit != nil || !ok {
		return nil
	}
	if err := unix.PidfdSendSignal(pidfd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// delete removes a container, killing what runs. One that is not there is no error.
func (w *Worker) delete(key string) error {
	w.mu.Lock()
	c := w.containers[key]
	w.mu.Unlock()
	if c == nil {
		return nil
	}
	remove := c.remove
	if c.half() {
		remove = c.scrap
	}
	if err := remove(); err != nil {
		return fmt.Errorf("delete container %s: %w", key, err)
	}
	return nil
}

// giveUp ends what may hang under the key's lock of a container that is to be deleted: an OCI runtime
// that waits for a mount, or a reopen that waits for room on the disk, which the delete may make.
func (w *Worker) giveUp(key string) {
	w.mu.Lock()
	c := w.containers[key]
	w.mu.Unlock()
	if c != nil {
		c.unwant(errRemoved)
		c.log.giveUp()
	}
}

// awaitEnd gives a killed container the moment until its exit is known and announced.
func (c *container) awaitEnd() {
	if !within(c.exited, 5*time.Second) {
		log.Printf("container %s was deleted before its end was seen", c.Key)
	}
}

// reopen goes on in the file at the log's path.
func (w *Worker) reopen(key string) error {
	if s := w.sink(key); s != nil {
		return s.log.reopen(func(fd int) error { return s.keep(map[string]int{fileLog: fd}) })
	}
	c, err := w.find(key)
	if err != nil {
		return err
	}
	err = c.log.reopen(func(fd int) error {
		w.reached(reopenFile)
		return c.keep(map[string]int{fileLog: fd})
	})
	if err != nil {
		return err
	}
	w.reached(reopenHeld)
	return nil
}

func (w *Worker) list() []wire.State {
	w.mu.Lock()
	all := make([]*container, 0, len(w.containers))
	for _, c := range w.containers {
		all = append(all, c)
	}
	w.mu.Unlock()
	states := make([]wire.State, 0, len(all))
	for _, c := range all {
		states = append(states, c.state())
	}
	sort.Slice(states, func(i, j int) bool { return states[i].Key < states[j].Key })
	return states
}
