package image

import (
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"gantry/internal/projquota"
)

// projects are the project ids of the containers' directories, by which the file system counts what
// writable layers occupy. Without them the layers are walked. The directories themselves remember their
// ids, so nothing else has to.
type projects struct {
	fs  *projquota.FS // nil where there are no project quotas
	log *slog.Logger

	mu sync.Mutex
	of map[string]uint32 // guarded by mu; by key
}

func openProjects(dir string, ids projquota.Range, log *slog.Logger) *projects {
	p := &projects{log: log, of: make(map[string]uint32)}
	if ids == (projquota.Range{}) {
		log.Info("writable layers are measured by walks", slog.String("because", "project quotas are switched off"))
		return p
	}
	fs, err := projquota.Open(dir, ids)
	if err != nil {
		log.Info("writable layers are measured by walks", slog.Any("because", err))
		return p
	}
	log.Info("writable layers are measured by project quotas", slog.String("ids", ids.String()))
	p.fs = fs
	return p
}

func (p *projects) close() {
	if p.fs != nil {
		_ = p.fs.Close()
	}
}

// assign gives a container's directory an id. Overlayfs moves files between the two directories, which
// must be in one project for that. A container without an id is measured by walks.
func (p *projects) assign(key, dir string) {
	if p.fs == nil {
		return
	}
	id, err := p.fs.Assign(filepath.Join(dir, "upper"), filepath.Join(dir, "work"))
	if err != nil {
		p.log.Warn("writable layer is measured by walks", slog.String("key", key), slog.Any("error", err))
		return
	}
	p.set(key, id)
}

// adopt finds the id that an earlier server gave to a container's directory.
func (p *projects) adopt(key, dir string) {
	if p.fs == nil {
		return
	}
	id, err := p.fs.Adopt(filepath.Join(dir, "upper"))
	if err != nil || id == 0 { // half made, or made without project quotas
		return
	}
	p.set(key, id)
}

func (p *projects) set(key string, id uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of[key] = id
}

// release gives the id of a container back whose directory is gone.
func (p *projects) release(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if id, ok := p.of[key]; ok {
		p.fs.Release(id)
		delete(p.of, key)
	}
}

// usage is what the container's writable layer occupies, nil if no project tells.
func (p *projects) usage(key string) *measured {
	p.mu.Lock()
	id, ok := p.of[key]
	p.mu.Unlock()
	if !ok {
		return nil
	}
	u, err := p.fs.Usage(id)
	if err != nil {
		p.log.Warn("project quota is not told", slog.String("key", key), slog.Any("error", err))
		return nil
	}
	return &measured{size{u.Bytes, u.Inodes}, time.Now()}
}
