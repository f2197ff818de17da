package image

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// disk is a measure that takes its time, as walking a large tree does.
type disk struct {
	takes time.Duration
	walks atomic.Int64
	bytes atomic.Uint64
}

func (d *disk) measure(string) size {
	d.walks.Add(1)
	sz := size{bytes: d.bytes.Load()}
	time.Sleep(d.takes)
	return sz
}

func TestWalks(t *testing.T) {
	t.Run("the first question waits for a small tree", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &disk{takes: time.Millisecond}
			d.bytes.Store(7)
			if m := newWalks(time.Second, d.measure).ask("a"); m == nil || m.bytes != 7 {
				t.Errorf("got %v", m)
			}
		})
	})
	t.Run("nobody waits for a large tree", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &disk{takes: time.Minute}
			w := newWalks(time.Second, d.measure)
			began := time.Now()
			for _, key := range []string{"a", "b", "c", "a"} {
				if m := w.ask(key); m != nil {
					t.Errorf("%s is known before it was walked: %v", key, m)
				}
			}
			if took := time.Since(began); took > firstWait {
				t.Errorf("four questions took %v", took)
			}
			time.Sleep(4 * time.Minute)
			synctest.Wait()
			if m := w.ask("c"); m == nil || d.walks.Load() != 3 {
				t.Errorf("%v after %d walks", m, d.walks.Load())
			}
		})
	})
	t.Run("an old answer is given while a new one is made", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &disk{takes: time.Millisecond}
			w := newWalks(time.Second, d.measure)
			w.ask("a")
			d.bytes.Store(9)
			time.Sleep(2 * time.Second)
			if m := w.ask("a"); m.bytes != 0 || time.Since(m.at) < time.Second {
				t.Errorf("got %+v of %v ago", m, time.Since(m.at))
			}
			synctest.Wait()
			time.Sleep(time.Millisecond)
			synctest.Wait()
			if m := w.ask("a"); m.bytes != 9 {
				t.Errorf("got %+v", m)
			}
		})
	})
	t.Run("a tree that takes long is walked seldom, and none when nobody asks", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := &disk{takes: 10 * time.Second}
			w := newWalks(time.Second, d.measure)
			for range 30 {
				w.ask("a")
				time.Sleep(10 * time.Second)
			}
			if n := d.walks.Load(); n > 2 {
				t.Errorf("%d walks of 10 s in 300 s", n)
			}
			n := d.walks.Load()
			time.Sleep(time.Hour)
			if d.walks.Load() != n {
				t.Error("walked though nobody asked")
			}
		})
	})
	t.Run("what is removed is forgotten", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWalks(time.Second, (&disk{takes: time.Millisecond}).measure)
			w.ask("a")
			w.forget("a")
			if len(w.trees) != 0 {
				t.Errorf("%v is left", w.trees)
			}
		})
	})
}
