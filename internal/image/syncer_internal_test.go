package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestSyncIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		gate := make(chan struct{})
		s := newSyncer(func() error { runs.Add(1); <-gate; return nil }, false, time.Hour)
		var wg sync.WaitGroup
		wait := func() {
			s.dirty()
			wg.Go(func() {
				if err := s.wait(t.Context()); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		for range 5 { // the first begins a sync; the others came too late for it and share the next
			wait()
		}
		close(gate)
		wg.Wait()
		if n := runs.Load(); n != 2 {
			t.Errorf("%d syncs ran, want 2", n)
		}
		if err := s.wait(t.Context()); err != nil || runs.Load() != 2 {
			t.Errorf("with nothing new: %v after %d syncs", err, runs.Load())
		}
	})
}

func TestSyncHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		s := newSyncer(func() error { <-gate; return nil }, false, time.Minute)
		s.dirty()
		began := time.Now()
		if err := s.wait(t.Context()); !errdefs.IsUnavailable(err) || time.Since(began) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		close(gate)
		if err := s.wait(t.Context()); err != nil {
			t.Errorf("the late sync ended: %v", err)
		}
	})
}

func TestFailedSyncIsToldAndTriedAgain(t *testing.T) {
	broken := unix.EIO
	results := []error{broken, nil}
	s := newSyncer(func() error { err := results[0]; results = results[1:]; return err }, false, time.Hour)
	s.dirty()
	if err := s.wait(t.Context()); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if err := s.wait(t.Context()); err != nil {
		t.Errorf("second try: %v", err)
	}
}

func TestMountByOptionsForOldKernels(t *testing.T) {
	s, err := Open(Options{Root: filepath.Join(t.TempDir(), "root")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var m *overlay
	for key, volume := range map[string]bool{"a:b,c": false, "v:b,c": true} {
		info := &rootInfo{Volume: volume}
		if err := s.makeContainer(key, info); err != nil {
			t.Fatal(err)
		}
		m = newOverlay(filepath.Join("..", containersDir, key), info, "")
		if err := mountIn(s.dir(layersDir), m.mountByOptions); err != nil {
			t.Fatal(err)
		}
		root := filepath.Join(s.containerDir(key), "rootfs")
		if mounted, err := isMounted(root); !mounted || err != nil {
			t.Errorf("mounted: %v, %v", mounted, err)
		}
		if err := os.Mkdir(filepath.Join(root, "new"), 0o755); (err == nil) == volume {
			t.Errorf("a directory made in it: %v", err)
		}
		if err := unmountAll(root); err != nil {
			t.Error(err)
		}
	}
	for range 2000 {
		m.lowers = append(m.lowers, "0123456789abcdef")
	}
	if err := mountIn(s.dir(layersDir), m.mountByOptions); !errors.Is(err, unix.E2BIG) {
		t.Errorf("too many layers: %v", err)
	}
}
