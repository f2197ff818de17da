package bridge

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumps is how often a dump is made, at most: on a node where links come and go all the time, one in a few
// is interrupted.
const dumps = 20

// Whole makes a dump of the kernel's until nothing has changed meanwhile: one that was interrupted may lack what
// was there all the time.
func Whole[T any](dump func() (T, error)) (all T, err error) {
	for range dumps {
		if all, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
