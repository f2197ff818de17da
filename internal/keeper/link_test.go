package keeper_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// A container that has the directory mounted may have put a link in the place of one on the way.
func TestLogBehindALinkIsRefused(t *testing.T) {
	b := newBench(t)
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(b.dir, "pod")); err != nil {
		t.Fatal(err)
	}
	c := container{script: "true"}
	c.LogPath = b.dir + "/./pod/0.log"
	if _, err := b.Create(b.context(), b.spec("c", c)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("create: %v", err)
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("written behind the link: %v", left)
	}
	c.LogPath = b.dir + "/pod/./0.log" // a link that is the operator's
	if _, err := b.Create(b.context(), b.spec("c", c)); err != nil {
		t.Errorf("create below a link: %v", err)
	}
}
