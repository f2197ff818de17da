package cni_test

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What a pod costs must not grow with the number of those that are attached.
func TestNobodyLooksThroughTheCache(t *testing.T) {
	s := newSite(t)
	s.plugin("plain", ready)
	s.conf("10.conflist", list("1.0.0", "plain"))
	n := s.start()
	for range 3 {
		attach(t, n, newPod(t))
	}
	lists := watchLists(t, filepath.Join(s.opts.CacheDir, "results"), filepath.Join(s.opts.CacheDir, "ids"))
	a := newPod(t)
	a.Network = attach(t, n, a)
	detach(t, n, a)
	if got := lists(); got > 0 {
		t.Errorf("the cache's directories were read %d times for one pod", got)
	}
	if _, err := os.ReadDir(filepath.Join(s.opts.CacheDir, "results")); err != nil || lists() == 0 {
		t.Errorf("the test does not see who reads a directory: %v", err)
	}
}

func TestDetachOfWhatAnEarlierServerAttached(t *testing.T) {
	s := newSite(t)
	old, other := s.plugin("old", ready), s.plugin("other", ready)
	s.conf("10.conflist", list("1.0.0", "old"))
	a := newPod(t)
	attach(t, s.start(), a)
	s.conf("10.conflist", list("1.0.0", "other"))
	if err := os.Remove(filepath.Join(s.opts.CacheDir, "ids", string(a.Key))); err != nil { // as a server had it that made none
		t.Fatal(err)
	}
	n := s.start()
	cached(t, n, a.Key)
	detach(t, n, a)
	if got := read(t, old); got != "ADD\nDEL\n" {
		t.Errorf("the plugin that attached the pod saw %q", got)
	}
	if got := read(t, other); got != "" {
		t.Errorf("the plugin of the new configuration saw %q", got)
	}
	cached(t, n)
}

// watchLists returns what says how often the directories were listed since it was asked last.
func watchLists(t *testing.T, dirs ...string) func() int {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	for _, d := range dirs {
		if _, err := unix.InotifyAddWatch(fd, d, unix.IN_ACCESS|unix.IN_ONLYDIR); err != nil {
			t.Fatal(err)
		}
	}
	return func() (lists int) {
		buf := make([]byte, 64<<10)
		for {
			n, err := unix.Read(fd, buf)
			if errors.Is(err, unix.EAGAIN) {
				return lists
			}
			if err != nil {
				t.Fatal(err)
			}
			for at := 0; at < n; {
				mask, name := binary.NativeEndian.Uint32(buf[at+4:]), binary.NativeEndian.Uint32(buf[at+12:]) // inotify(7)
				if mask&unix.IN_ISDIR != 0 && name == 0 {
					lists++
				}
				at += unix.SizeofInotifyEvent + int(name)
			}
		}
	}
}
