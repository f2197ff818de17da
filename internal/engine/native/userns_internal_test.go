package native

import (
	"errors"
	"fmt"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestWhetherIDsAreMappedIsAskedUntilItIsKnown(t *testing.T) {
	passes := fmt.Errorf("make user namespace: %w", unix.ENOMEM)
	never := fmt.Errorf("map ids: %w", errdefs.ErrNotImplemented)
	for name, c := range map[string]struct {
		says  []error
		asked int // out of three times
	}{
		"it can be done":            {[]error{nil}, 1},
		"it can never be done":      {[]error{never}, 1},
		"a failure that passes":     {[]error{passes, nil}, 2},
		"one that does not so soon": {[]error{passes, passes, passes}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			mapsIDs := settled(func() error { n++; return c.says[n-1] })
			for i := range 3 {
				if got, want := mapsIDs(), c.says[min(i, len(c.says)-1)]; !errors.Is(got, want) {
					t.Errorf("the answer is %v, want %v", got, want)
				}
			}
			if n != c.asked {
				t.Errorf("asked %d times, want %d", n, c.asked)
			}
		})
	}
}
