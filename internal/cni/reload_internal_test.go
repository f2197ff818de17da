package cni

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A configuration that comes while the directory is being read is not forgotten for what was read before it.
func TestConfigurationThatComesWhileAnotherIsRead(t *testing.T) {
	dir := t.TempDir()
	slow, next := filepath.Join(dir, "10-net.conflist"), filepath.Join(t.TempDir(), "next")
	if err := unix.Mkfifo(slow, 0o600); err != nil {
		t.Fatal(err)
	}
	list := func(name string) []byte {
		return []byte(`{"cniVersion": "1.0.0", "name": "` + name + `", "plugins": [{"type": "p"}]}`)
	}
	if err := os.WriteFile(next, list("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := &Network{opts: Options{ConfDir: dir, Log: slog.New(slog.DiscardHandler)}}
	first, second := make(chan struct{}), make(chan struct{})
	go func() { defer close(first); n.reload() }()
	w, err := os.OpenFile(slow, os.O_WRONLY, 0) // returns when it is being read
	if err != nil {
		t.Fatal(err)
	}
	if err = os.Rename(next, slow); err != nil {
		t.Fatal(err)
	}
	go func() { defer close(second); n.reload() }()
	if _, err = w.Write(list("old")); err != nil {
		t.Fatal(err)
	}
	if !n.reloading.TryLock() { // the second waits for the first
		_ = w.Close()
	} else {
		n.reloading.Unlock()
		t.Error("two read at once")
		<-second
		_ = w.Close()
	}
	<-first
	<-second
	if n.conf == nil || n.conf.list.Name != "new" {
		t.Errorf("the configuration is %+v", n.conf)
	}
}
