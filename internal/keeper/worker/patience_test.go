package worker

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestWaitingCountsLooksAndNotTime(t *testing.T) {
	closed, open := make(chan struct{}), make(chan struct{})
	close(closed)
	ticks := make(chan time.Time, 2) // what a machine that stood still has left of many
	ticks <- time.Now()
	ticks <- time.Now()
	if !countdown(closed, ticks, 2) {
		t.Error("what is there was not seen behind the last tick")
	}
	for len(ticks) < cap(ticks) {
		ticks <- time.Now()
	}
	if countdown(open, ticks, 2) {
		t.Error("what is not there was seen")
	}
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if within(make(chan struct{}), time.Minute) || time.Since(began) != time.Minute {
			t.Errorf("waited for %v, want a minute", time.Since(began))
		}
		late := make(chan struct{})
		time.AfterFunc(59*time.Second, func() { close(late) })
		if !within(late, time.Minute) {
			t.Error("did not wait for what came in time")
		}
	})
}
