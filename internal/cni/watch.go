package cni

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// watcher calls changed whenever a directory, or what is in it, may have changed. A directory that
// does not exist is waited for.
type watcher struct {
	dir     string
	log     *slog.Logger
	fs      *fsnotify.Watcher
	changed func()
	done    sync.WaitGroup
}

func watch(dir string, log *slog.Logger, changed func()) (*watcher, error) {
	fs, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	w := &watcher{dir: filepath.Clean(dir), log: log, fs: fs, changed: changed}
	if err := w.arm(); err != nil {
		_ = fs.Close()
		return nil, err
	}
	w.done.Go(w.run)
	return w, nil
}

func (w *watcher) close() error {
	err := w.fs.Close()
	w.done.Wait()
	return err
}

func (w *watcher) run() {
	for {
		select {
		case _, ok := <-w.fs.Events:
			if !ok {
				return
			}
		case err, ok := <-w.fs.Errors:
			if !ok {
				return
			}
			w.log.Warn("watch network configuration", "dir", w.dir, "error", err)
		}
		if err := w.arm(); errors.Is(err, fsnotify.ErrClosed) {
			return
		} else if err != nil {
			w.log.Warn("watch network configuration", "dir", w.dir, "error", err)
		}
		w.changed()
	}
}

// arm watches what there is to watch now, until looking again finds the same: what is created
// before its parent is watched sends no event.
func (w *watcher) arm() error {
	for {
		want, have := w.wanted(), w.fs.WatchList()
		changed := false
		for _, d := range have {
			if !slices.Contains(want, d) {
				_ = w.fs.Remove(d) // gone already, most of the time
			}
		}
		for _, d := range want {
			if slices.Contains(have, d) {
				continue
			}
			if err := w.fs.Add(d); err != nil && !os.IsNotExist(err) {
				return err
			}
			changed = true
		}
		if !changed {
			return nil
		}
	}
}

// wanted is the directory with its parent, or the deepest ancestor that exists; and the directories
// in it, where lists keep plugins that are not inlined.
func (w *watcher) wanted() []string {
	for d := w.dir; ; d = filepath.Dir(d) {
		info, err := os.Stat(d)
		if err != nil || !info.IsDir() {
			if d == filepath.Dir(d) {
				return nil
			}
			continue
		}
		if d != w.dir {
			return []string{d}
		}
		want := []string{filepath.Dir(d), d}
		entries, _ := os.ReadDir(d)
		for _, e := range entries {
			if e.IsDir() {
				want = append(want, filepath.Join(d, e.Name()))
			}
		}
		return slices.Compact(want)
	}
}
