package cni_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A bridge plugin that was killed after it deleted the pod's link cannot find its rules again.
func TestRepeatedDelLeavesNoMasquerading(t *testing.T) {
	s := newSite(t)
	leases := t.TempDir()
	s.conf("10-real.conflist", `{"cniVersion": "1.0.0", "name": "real", "plugins": [
		{"type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": true,
		 "ipam": {"type": "host-local", "dataDir": "`+leases+`", "ranges": [[{"subnet": "10.99.0.0/24"}]]}}]}`)
	n := s.start()
	a, neighbour := newPod(t), newPod(t)
	a.Network = attach(t, n, a)
	neighbour.Network = attach(t, n, neighbour)
	defer detach(t, n, neighbour)
	masquerading := func(key string) bool { return strings.Contains(run(t, "iptables-save"), key) }
	if !masquerading(string(a.Key)) {
		t.Fatal("the plugin does not masquerade")
	}
	run(t, "ip", "-n", filepath.Base(a.NetNS), "link", "del", "eth0")
	// As the killed one left it: the note that a DEL began, and no link.
	if err := os.WriteFile(filepath.Join(s.opts.CacheDir, "ids", string(a.Key)), []byte("detaching"), 0o600); err != nil {
		t.Fatal(err)
	}
	detach(t, n, a)
	if masquerading(string(a.Key)) {
		t.Errorf("rules are left:\n%s", run(t, "iptables-save"))
	}
	if !masquerading(string(neighbour.Key)) {
		t.Error("another pod's rules are gone")
	}
}
