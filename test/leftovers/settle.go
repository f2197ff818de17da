package leftovers

import (
	"context"
	"time"
)

// Patience is how long what ends on its own may take to be gone on a machine under load, in tests.
const Patience = time.Minute

// Settle returns what is there beyond before, once it is nothing or once patience is over: a
// process that was killed and a mount that was detached are gone a moment later.
func Settle(ctx context.Context, scope Scope, before Snapshot, patience time.Duration) ([]string, error) {
	deadline := time.After(patience)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		now, err := Take(ctx, scope)
		if err != nil {
			return nil, err
		}
		left := now.Since(before)
		if len(left) == 0 {
			return nil, nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return left, nil
		case <-ctx.Done():
			return left, ctx.Err()
		}
	}
}
