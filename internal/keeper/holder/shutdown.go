package holder

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Systemd's last program takes init's place when the machine goes down. It sends SIGTERM to whatever
// still runs and waits 90 seconds for the end of everything (systemd-shutdown(8)).
const (
	initName  = "/proc/1/comm"
	lastInit  = "systemd-shutdow\n" // the kernel keeps 15 bytes
	drainTime = time.Second         // for the worker to write the last words of containers
)

// asked is told of a SIGTERM, which means nothing unless the machine goes down: then the holder ends
// after the last container, which gets SIGTERM at the same moment.
func (h *holder) asked() {
	name, err := os.ReadFile(initName)
	h.leaving = h.leaving || err == nil && string(name) == lastInit
}

// end ends the worker, which would else start another holder. One that this holder was started by is
// its parent and not its child.
func (h *holder) end() {
	<-time.After(drainTime) // what is still in the streams is known to the worker alone
	switch parent := os.Getppid(); {
	case h.worker > 0:
		_ = unix.Kill(h.worker, unix.SIGKILL)
		for {
			if _, err := unix.Wait4(h.worker, nil, 0, nil); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	case h.opt.Adopt && parent > 1:
		_ = unix.Kill(parent, unix.SIGKILL)
	}
}
