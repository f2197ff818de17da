package cni_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gantry/internal/cni"
)

func TestGCCollectsWhatAnEarlierServerLeft(t *testing.T) {
	s := newSite(t)
	leases := t.TempDir()
	s.conf("10-real.conflist", bridgeList(leases))
	old := s.start()
	keep, gone := newPod(t), newPod(t)
	kept := attach(t, old, keep)
	attach(t, old, gone)
	run(t, "ip", "netns", "del", filepath.Base(gone.NetNS))

	n := s.start()
	young := newPod(t)
	attach(t, n, young) // after the list of those to keep was made
	if err := n.GC(t.Context(), []*cni.Attachment{keep}); err != nil {
		t.Fatal(err)
	}
	if left := leasesIn(leases); len(left) != 2 {
		t.Errorf("leases %v, want those of two pods", left)
	}
	if inside := run(t, "ip", "-n", filepath.Base(keep.NetNS), "addr"); !strings.Contains(inside, kept.IPs[0]) {
		t.Errorf("the pod that was kept has lost its address:\n%s", inside)
	}
}

// TestGCFreesLeasesAfterAPowerCut has lost the cache, and DEL of the new configuration frees
// nothing: only host-local's file and the pod's id are there.
func TestGCFreesLeasesAfterAPowerCut(t *testing.T) {
	s := newSite(t)
	leases := t.TempDir()
	s.conf("10-real.conflist", bridgeList(leases))
	attach(t, s.start(), newPod(t))
	if err := os.RemoveAll(filepath.Join(s.opts.CacheDir, "results")); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(leases, "real", "10.99.0.99")
	if err := os.WriteFile(foreign, []byte("somebody-else\r\neth0"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.plugin("forgetful", ready)
	s.conf("10-real.conflist", `{"cniVersion": "1.0.0", "name": "real", "plugins": [
		{"type": "forgetful", "ipam": {"type": "host-local", "dataDir": "`+leases+`"}}]}`)
	n := s.start()
	if err := n.GC(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if left := leasesIn(leases); len(left) != 1 || left[0] != foreign {
		t.Errorf("leases %v, want that of another runtime only", left)
	}
	cached(t, n)
}

func TestGCTellsPluginsWhatIsValid(t *testing.T) {
	s := newSite(t)
	verbs := s.plugin("plain", "[ $CNI_COMMAND = GC ] && cat > "+s.bin+"/gc\n"+ready)
	s.conf("10.conflist", list("1.1.0", "plain"))
	a := newPod(t)
	attach(t, s.start(), a)
	if err := s.start().GC(t.Context(), []*cni.Attachment{a}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, verbs); got != "ADD\nGC\n" {
		t.Errorf("the plugin saw %q", got)
	}
	if got := read(t, s.bin+"/gc"); !strings.Contains(got, string(a.Key)) {
		t.Errorf("GC without the valid attachment: %s", got)
	}
}
