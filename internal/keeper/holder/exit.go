package holder

import (
	"encoding/json"
	"errors"
	"log"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/atomicfile"
	"gantry/internal/keeper/wire"
)

// reap takes every ended child. Claimed ones go on record; others are remembered, because a process
// may end before the worker has read its pid.
func (h *holder) reap() {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if pid <= 0 || err != nil {
			return
		}
		now := time.Now()
		switch _, claimed := h.claims[pid]; {
		case claimed:
			h.record(pid, status(ws, now))
		case pid == h.worker:
			h.countCrash(ws)
		default:
			h.loose.add(pid, death{ws, now})
		}
	}
}

func status(ws unix.WaitStatus, at time.Time) wire.Exit {
	if ws.Signaled() {
		return wire.Exit{Code: 128 + int32(ws.Signal()), At: at}
	}
	return wire.Exit{Code: int32(ws.ExitStatus()), At: at}
}

// claim notes whose process a pid is. A repeated claim changes nothing; where the exit is known and
// no disk has taken it yet, it is told again.
func (h *holder) claim(f frame) error {
	var c wire.Claim
	if err := f.Into(&c); err != nil {
		wire.CloseAll(f.fds)
		return err
	}
	defer wire.CloseAll(f.fds)
	if _, known := h.claims[c.Pid]; known {
		return nil
	}
	if u, known := h.unwritten[c.Key]; known && u.Claim.Pid == c.Pid {
		h.announce(u)
		return nil
	}
	h.claims[c.Pid] = c
	d, ended := h.loose.take(c.Pid)
	if child(c.Pid) { // what is remembered is of another process that had the pid before
		return nil
	}
	if ended {
		h.record(c.Pid, status(d.status, d.at))
		return nil
	}
	if len(f.fds) == 0 {
		h.record(c.Pid, unknown())
		return nil
	}
	fd, err := unix.FcntlInt(uintptr(f.fds[0]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	go h.watch(c.Pid, fd)
	return nil
}

// child says whether pid is a child, ended or not, without reaping it.
func child(pid int) bool {
	err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil
}

// watch waits for a process that another one reaps: the child of a holder that died.
func (h *holder) watch(pid, fd int) {
	f := os.NewFile(uintptr(fd), "pidfd")
	defer func() { _ = f.Close() }()
	if err := unix.SetNonblock(fd, true); err != nil {
		log.Printf("watch %d: %v", pid, err)
	}
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	h.exits <- exit{pid, after(fd)}
}

// after asks the kernel how a process ended that somebody else reaps: Linux 6.15 and later tell it
// once the process was reaped, which may take its parent a moment.
func after(pidfd int) wire.Exit {
	for wait := time.Millisecond; wait < 5*time.Second; wait *= 2 {
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
		if err := unix.IoctlPidfdInfo(pidfd, &info); err != nil {
			break
		}
		if info.Mask&unix.PIDFD_INFO_EXIT != 0 {
			return status(unix.WaitStatus(info.Exit_code), time.Now())
		}
		<-time.After(wait) // the kernel does not tell when
	}
	return unknown()
}

func unknown() wire.Exit { return wire.Exit{Code: 255, At: time.Now(), Unknown: true} }

// unwritten is an exit that no disk has taken yet: it is full, or broken.
type unwritten struct {
	Claim wire.Claim
	Exit  wire.Exit
}

// record puts an exit on disk, then tells the worker, in that order: what was announced is never
// forgotten, and a worker that is dead now finds the record. What the disk does not take is kept here
// and tried again.
func (h *holder) record(pid int, e wire.Exit) {
	c, ok := h.claims[pid]
	if !ok {
		return
	}
	delete(h.claims, pid)
	u := unwritten{c, e}
	if err := u.write(); err != nil {
		log.Printf("record exit of %s, which ended with %d, to be tried again: %v", c.Key, e.Code, err)
		h.unwritten[c.Key] = u
	}
	h.announce(u)
}

func (u *unwritten) write() error {
	data, err := json.Marshal(u.Exit)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(u.Claim.Dir, wire.ExitFile), data, 0o600)
}

// writeAgain tries what no disk took, and then tells it again: a worker that was just making the container when it heard
// of the exit looked for the record in vain. What was removed meanwhile needs no record; one that the worker wrote knows
// more.
func (h *holder) writeAgain() {
	for key, u := range h.unwritten {
		_, err := os.Stat(filepath.Join(u.Claim.Dir, wire.ExitFile))
		if err != nil {
			err = u.write()
		}
		switch {
		case err == nil:
			log.Printf("exit of %s is on record after all", key)
			h.announce(u)
		case !errors.Is(err, os.ErrNotExist):
			continue
		}
		delete(h.unwritten, key)
	}
}

func (h *holder) announce(u unwritten) {
	f := &wire.Frame{Op: wire.OpExit}
	if err := f.SetBody(wire.Ended{Key: u.Claim.Key, Pid: u.Claim.Pid, Exit: u.Exit}); err != nil {
		log.Print(err)
		return
	}
	h.send(f)
}
