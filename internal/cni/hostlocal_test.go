package cni_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// torn has a network whose plugin is killed as host-local may be: it has made the lease's file and not written it.
func torn(t *testing.T) (s *site, leases string) {
	t.Helper()
	s = newSite(t)
	leases = filepath.Join(t.TempDir(), "real")
	if err := os.Mkdir(leases, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"lock": "", "last_reserved_ip.0": "10.99.0.2", "10.99.0.9": "somebody-else\r\neth0"} {
		if err := os.WriteFile(filepath.Join(leases, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.plugin("killed", "[ $CNI_COMMAND = ADD ] && : > "+leases+"/10.99.0.2 && kill -9 $$\n"+ready)
	s.conf("10.conflist", `{"cniVersion": "1.0.0", "name": "real", "plugins": [
		{"type": "killed", "ipam": {"type": "host-local", "dataDir": "`+filepath.Dir(leases)+`"}}]}`)
	return s, leases
}

func wantLeases(t *testing.T, dir string, want int) {
	t.Helper()
	if left := leasesIn(filepath.Dir(dir)); len(left) != want {
		t.Errorf("leases %v, want %d", left, want)
	}
}

func TestLeaseOfAKilledHostLocalIsFreed(t *testing.T) {
	s, leases := torn(t)
	if _, err := s.start().Attach(t.Context(), newPod(t)); err == nil {
		t.Fatal("a plugin that was killed connected a pod")
	}
	wantLeases(t, leases, 1)
}

// TestLeaseThatIsBeingWrittenStays: who has the lock may be about to write it.
func TestLeaseThatIsBeingWrittenStays(t *testing.T) {
	s, leases := torn(t)
	if err := os.WriteFile(filepath.Join(leases, "10.99.0.3"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Open(filepath.Join(leases, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	n := s.start()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err = n.GC(ctx, nil); err == nil {
		t.Error("GC did without the lock")
	}
	wantLeases(t, leases, 2)
	if err = unix.Flock(int(lock.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if err = n.GC(t.Context(), nil); err != nil {
		t.Error(err)
	}
	wantLeases(t, leases, 1)
}
