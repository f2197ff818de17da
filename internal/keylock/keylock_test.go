package keylock_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"gantry/internal/keylock"
)

func TestOneHolderPerKey(t *testing.T) {
	var l keylock.Locks[string]
	var wg sync.WaitGroup
	n := 0
	for range 100 {
		wg.Go(func() {
			unlock, err := l.Lock(context.Background(), "pod")
			if err != nil {
				t.Error(err)
				return
			}
			n++ // the race detector is the assertion
			unlock()
		})
	}
	wg.Wait()
	if n != 100 || l.Len() != 0 {
		t.Errorf("n = %d, %d keys kept; want 100 and none", n, l.Len())
	}
}

func TestWaiterLeavesWithItsContext(t *testing.T) {
	var l keylock.Locks[string]
	unlock, _ := l.Lock(context.Background(), "slow")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := l.Lock(ctx, "slow"); !errors.Is(err, context.Canceled) {
		t.Fatalf("Lock of a held key with an ended context: %v", err)
	}
	other, err := l.Lock(context.Background(), "other")
	if err != nil {
		t.Fatalf("another key waits for the slow one: %v", err)
	}
	other()
	unlock()
	unlock() // a second call frees nothing
	again, err := l.Lock(context.Background(), "slow")
	if err != nil {
		t.Fatal(err)
	}
	again()
	if l.Len() != 0 {
		t.Errorf("%d keys kept after all were freed", l.Len())
	}
}
