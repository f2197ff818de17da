package event_test

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/event"
)

func publish(l *event.Log, id string) {
	l.Publish(func() event.Event { return event.Event{Kind: event.Created, ID: id} })
}

func ids(events []event.Event) (all []string) {
	for _, ev := range events {
		all = append(all, ev.ID)
	}
	return all
}

// Time stands still in the bubble: a clock that does not move is the worst that a stamp meets.
func TestStampsIncreaseThoughTheClockStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := event.New(event.Options{Keep: 4000})
		var publishers sync.WaitGroup
		for i := range 8 {
			publishers.Go(func() {
				for range 100 {
					publish(l, fmt.Sprint(i))
				}
			})
		}
		publishers.Wait()
		replay := l.Subscribe(time.Now().Add(-time.Hour)).Replay
		if len(replay) != 800 {
			t.Fatalf("%d events", len(replay))
		}
		for i := 1; i < len(replay); i++ {
			if !replay[i].At.After(replay[i-1].At) {
				t.Fatalf("event %d at %v, the one before at %v", i, replay[i].At, replay[i-1].At)
			}
		}
	})
}

func TestEveryListenerGetsEveryEventInOrder(t *testing.T) {
	l := event.New(event.Options{})
	a, b := l.Subscribe(time.Time{}), l.Subscribe(time.Time{})
	for i := range 100 {
		publish(l, fmt.Sprint(i))
	}
	for _, s := range []*event.Subscription{a, b} {
		for i := range 100 {
			if ev := <-s.Events(); ev.ID != fmt.Sprint(i) {
				t.Fatalf("event %s at place %d", ev.ID, i)
			}
		}
		s.Close()
	}
}

func TestASlowListenerIsCutOffAndNobodyElse(t *testing.T) {
	l := event.New(event.Options{Buffer: 3})
	slow, quick := l.Subscribe(time.Time{}), l.Subscribe(time.Time{})
	for i := range 5 {
		publish(l, fmt.Sprint(i))
		<-quick.Events()
	}
	var got []event.Event
	for ev := range slow.Events() {
		got = append(got, ev)
	}
	if fmt.Sprint(ids(got)) != "[0 1 2]" || !errdefs.IsResourceExhausted(slow.Err()) {
		t.Errorf("the slow one got %v and then %v", ids(got), slow.Err())
	}
	slow.Close()
	publish(l, "5")
	if ev := <-quick.Events(); ev.ID != "5" {
		t.Errorf("the quick one got %v", ev)
	}
}

func TestReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := event.New(event.Options{Keep: 3})
		began := time.Now()
		for i := range 3 {
			time.Sleep(time.Second)
			publish(l, fmt.Sprint(i))
		}
		for _, c := range []struct {
			rule     string
			since    time.Time
			want     string
			complete time.Duration // after the beginning
		}{
			{"nothing that was not asked for", time.Time{}, "[]", 0},
			{"everything since before the log", began.Add(-time.Hour), "[0 1 2]", 0},
			{"only what is later", began.Add(2 * time.Second), "[2]", 0},
			{"nothing of the future", began.Add(time.Hour), "[]", 0},
		} {
			s := l.Subscribe(c.since)
			if got := fmt.Sprint(ids(s.Replay)); got != c.want || !s.Complete.Equal(began.Add(c.complete)) {
				t.Errorf("%s: %s, complete since %v", c.rule, got, s.Complete.Sub(began))
			}
			s.Close()
		}
		time.Sleep(time.Second)
		publish(l, "3")
		s := l.Subscribe(began)
		if got := fmt.Sprint(ids(s.Replay)); got != "[1 2 3]" || !s.Complete.Equal(began.Add(time.Second)) {
			t.Errorf("a full ring replays %s and says it is complete since %v", got, s.Complete.Sub(began))
		}
		publish(l, "4")
		if ev := <-s.Events(); ev.ID != "4" {
			t.Errorf("after the replay comes %v", ev)
		}
	})
}

func TestCloseEndsEveryListener(t *testing.T) {
	l := event.New(event.Options{})
	before := l.Subscribe(time.Time{})
	publish(l, "last")
	l.Close()
	publish(l, "unheard")
	after := l.Subscribe(time.Time{})
	if ev := <-before.Events(); ev.ID != "last" {
		t.Errorf("got %v", ev)
	}
	for rule, s := range map[string]*event.Subscription{"one from before": before, "one that comes later": after} {
		if ev, ok := <-s.Events(); ok || !errdefs.IsUnavailable(s.Err()) {
			t.Errorf("%s got %v and then %v", rule, ev, s.Err())
		}
		s.Close()
	}
}
