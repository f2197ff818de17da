package engine

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Real-time signals as the C library numbers them (signal(7)); stop signals such as systemd's
// SIGRTMIN+3 are written relative to them.
const (
	rtMin = 34
	rtMax = 64
)

// Number reads the names "SIGTERM", "TERM", "15" and "SIGRTMIN+3". Another is errdefs.ErrInvalidArgument.
func (s Signal) Number() (syscall.Signal, error) {
	bad := fmt.Errorf("signal %q: %w", s.Name, errdefs.ErrInvalidArgument)
	if n, err := strconv.Atoi(s.Name); err == nil {
		if n < 1 || n > rtMax {
			return 0, bad
		}
		return syscall.Signal(n), nil
	}
	full := "SIG" + strings.TrimPrefix(strings.ToUpper(s.Name), "SIG")
	if sig := unix.SignalNum(full); sig != 0 {
		return sig, nil
	}
	for base, number := range map[string]int{"SIGRTMIN": rtMin, "SIGRTMAX": rtMax} {
		offset, ok := strings.CutPrefix(full, base)
		if !ok {
			continue
		}
		n := 0
		if offset != "" {
			var err error
			if n, err = strconv.Atoi(offset); err != nil {
				return 0, bad
			}
		}
		if number += n; number >= rtMin && number <= rtMax {
			return syscall.Signal(number), nil
		}
	}
	return 0, bad
}
