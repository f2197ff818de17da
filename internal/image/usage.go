package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// usage remembers what the store occupies. Layers never change: each is measured once.
type usage struct {
	measuring sync.Mutex      // held while the disk is walked
	layers    map[string]size // guarded by measuring
	mu        sync.Mutex      // after measuring
	answer    *[2]pod.Usage   // guarded by mu: images, writable layers
	refresh   bool            // guarded by mu: a walk is under way
}

// size is what a tree occupies.
type size struct{ bytes, inodes uint64 }

// Usage tells what images and writable layers occupy, each with the time when it was measured. An
// answer that is too old is given once more while a new one is measured behind the caller's back, so
// that only the first call waits for the disk.
func (s *Store) Usage(ctx context.Context) (images, layers []pod.Usage, err error) {
	s.usage.mu.Lock()
	answer := s.usage.answer
	if answer != nil && time.Since(answer[0].At) > s.opts.UsageAge && !s.usage.refresh {
		s.usage.refresh = true
		go s.measure()
	}
	s.usage.mu.Unlock()
	if answer == nil {
		answer = s.measure()
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, context.Cause(ctx)
	}
	return []pod.Usage{answer[0]}, []pod.Usage{answer[1]}, nil
}

func (s *Store) measure() *[2]pod.Usage {
	s.usage.measuring.Lock()
	defer s.usage.measuring.Unlock()
	at := time.Now()
	image := s.measureLayers()
	image.add(measureTree(s.dir(imagesDir)))
	image.add(measureTree(s.dir(treesDir)))
	var writable size
	keys, _ := os.ReadDir(s.dir(containersDir)) // what cannot be read occupies nothing we know of
	for _, k := range keys {
		if m := s.projects.usage(k.Name()); m != nil {
			writable.add(m.size)
			continue
		}
		writable.add(s.measureWritable(k.Name()))
	}
	answer := &[2]pod.Usage{
		{Mountpoint: s.dir(layersDir), At: at, Bytes: image.bytes, Inodes: image.inodes},
		{Mountpoint: s.dir(containersDir), At: at, Bytes: writable.bytes, Inodes: writable.inodes},
	}
	s.usage.mu.Lock()
	defer s.usage.mu.Unlock()
	s.usage.answer, s.usage.refresh = answer, false
	return answer
}

func (s *Store) measureLayers() (total size) {
	s.mu.Lock()
	names := make([]string, 0, len(s.layers))
	for name := range s.layers {
		names = append(names, name)
	}
	s.mu.Unlock()
	known := make(map[string]size, len(names))
	for _, name := range names {
		sz, ok := s.usage.layers[name]
		if !ok {
			sz = measureTree(s.layerPath(name))
		}
		known[name] = sz
		total.add(sz)
	}
	s.usage.layers = known
	return total
}

func (s *size) add(o size) {
	s.bytes += o.bytes
	s.inodes += o.inodes
}

// measureTree counts blocks and inodes below dir, a file with several names once. What goes away
// meanwhile does not count.
func measureTree(dir string) (total size) {
	type inode struct{ dev, ino uint64 }
	seen := make(map[inode]bool)
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if d != nil && d.IsDir() && !errors.Is(err, fs.ErrNotExist) {
				return fs.SkipDir
			}
			return nil
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil {
			return nil
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			id := inode{st.Dev, st.Ino}
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		total.add(size{bytes: uint64(st.Blocks) * 512, inodes: 1})
		return nil
	})
	return total
}
