package store

import (
	"encoding/json"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

func TestExitsAreSyncedWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(t.TempDir(), "b")
		if err != nil {
			t.Fatal(err)
		}
		exited := func(key pod.Key) *pod.Container {
			return &pod.Container{Spec: pod.ContainerSpec{Key: key}, State: pod.ContainerExited}
		}
		for _, key := range []pod.Key{"a", "b"} {
			if err := s.PutContainer(exited(key)); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.PutContainer(&pod.Container{Spec: pod.ContainerSpec{Key: "r"}, State: pod.ContainerRunning}); err != nil {
			t.Fatal(err)
		}
		if n := waiting(s); n != 2 {
			t.Errorf("%d records wait for the disk; want the two exits", n)
		}
		<-time.After(time.Second) // of the bubble's clock
		synctest.Wait()
		if n := waiting(s); n != 0 {
			t.Errorf("%d exits are not synced after a second", n)
		}
		if err := s.PutContainer(exited("c")); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil || waiting(s) != 0 {
			t.Errorf("close: %v, %d exits not synced", err, waiting(s))
		}
	})
}

func waiting(s *Store) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.dirty)
}

func TestFullDiskClass(t *testing.T) {
	err := classify(&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC})
	if !errdefs.IsResourceExhausted(err) {
		t.Errorf("%v is not ErrResourceExhausted", err)
	}
}

func FuzzDecode(f *testing.F) {
	samples, err := filepath.Glob("testdata/v*/*.json")
	if err != nil || len(samples) == 0 {
		f.Fatalf("no samples: %v", err)
	}
	for _, path := range samples {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := decode(data); err != nil {
			f.Errorf("%s: %v", path, err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decode(data)
		if err != nil {
			return
		}
		if r.key() == "" || !r.knownState() || r.Version > Version {
			t.Fatalf("accepted %+v", r)
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatalf("what was decoded cannot be written: %v", err)
		}
		if _, err := decode(again); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
	})
}
