package bridge_test

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"

	"gantry/internal/bridge"
)

func TestDumpIsMadeUntilItIsWhole(t *testing.T) {
	other := errors.New("other")
	for rule, tt := range map[string]struct {
		answers []error
		want    error
		dumps   int
	}{
		"whole at once":     {[]error{nil}, nil, 1},
		"interrupted twice": {[]error{netlink.ErrDumpInterrupted, netlink.ErrDumpInterrupted, nil}, nil, 3},
		"another error":     {[]error{netlink.ErrDumpInterrupted, other, nil}, other, 2},
		"never whole":       {nil, netlink.ErrDumpInterrupted, 20},
	} {
		t.Run(rule, func(t *testing.T) {
			n := 0
			got, err := bridge.Whole(func() (int, error) {
				n++
				if n <= len(tt.answers) {
					return n, tt.answers[n-1]
				}
				return n, netlink.ErrDumpInterrupted
			})
			if !errors.Is(err, tt.want) || n != tt.dumps || got != n {
				t.Errorf("answer %d, error %v after %d dumps", got, err, n)
			}
		})
	}
}
