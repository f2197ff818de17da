// Package image is the native image store: it pulls images from registries, keeps them as overlay
// layers, and mounts them as root file systems of containers.
//
// Below its root the store has
//
//	images/<id>.json        one record an image, the only memory; written when its layers are on the disk
//	layers/<name>           one tree a layer, in overlayfs form, never changed once it is there but mended
//	trees/<name>            what that tree was when it was unpacked: see package tree
//	damaged/<name>          says that the layer was found to differ from that
//	containers/<key>/       a container's writable layer and the mount point of its root file system
//	staging/                what is being made or removed; emptied when the store is opened
//
// A pull is one stream a layer: download, decompression, the verification of both digests and the
// unpacking run together, layers side by side; no compressed blob is kept. What no image, no
// container and no running pull refers to is removed.
//
// Errors are classified as package engine says; see packages remote and unpack for theirs.
package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"golang.org/x/sys/unix"

	"gantry/internal/image/remote"
	"gantry/internal/image/unpack"
	"gantry/internal/keylock"
	"gantry/internal/pod"
	"gantry/internal/projquota"
)

// Options say where a store is and what it may take. Root is needed; every other field has a default.
type Options struct {
	Root     string
	CertsDir string   // <host>/hosts.toml in containerd's format
	Pinned   []string // references of images that garbage collection spares
	Log      *slog.Logger

	ParallelLayers int           // layers fetched at once by all pulls; 0 is 4
	Bandwidth      int64         // bytes a second of all pulls together; 0 is no limit
	Stall          time.Duration // how long a registry may send no byte; 0 is a minute
	Backoff        time.Duration // before a second attempt; 0 is 200 ms
	SyncDeadline   time.Duration // for writing an image to the disk; 0 is 5 minutes
	UsageAge       time.Duration // how old an answer of Usage may be; 0 is 10 seconds
	Limits         unpack.Limits // of one layer; zero fields are 128 GiB and 8 million entries
	// Projects are the ids that containers' directories get where the file system has project quotas; none
	// means that writable layers are walked.
	Projects projquota.Range
	// NoSync leaves out every sync: a power cut may then leave images that are not whole.
	NoSync bool
	// Platform is the one whose images are chosen from an index; "" is the machine's.
	Platform string
	// Hook, if set, is called after every change on the disk that others follow, with the change's
	// name. One that does not return is a crash there.
	Hook func(point string)
}

const (
	imagesDir     = "images"
	layersDir     = "layers"
	treesDir      = "trees"
	damagedDir    = "damaged"
	containersDir = "containers"
	stagingDir    = "staging"
)

// Store is a native image store. It is safe for concurrent use. One store at a time has a root.
//
// Lock order: a container's key, then commit, then mu. None but the key's is held while layers are
// fetched or removed.
type Store struct {
	opts     Options
	log      *slog.Logger
	remote   *remote.Client
	platform platforms.MatchComparer
	lock     *os.File // of the root
	slots    chan struct{}
	windows  windows
	sync     *syncer
	usage    usage
	writable *walks
	projects *projects
	keys     keylock.Locks[string]
	pinned   map[string]bool

	pulls   flights[pullKey, string]
	fetches flights[string, *layer]

	commit sync.Mutex // held while records change on the disk

	mu     sync.Mutex
	index  index             // guarded by mu
	layers map[string]*layer // guarded by mu; what is in layers/, by name
	// damaged layers by name: true until the layer was mended, false until that is on the disk; guarded by mu
	damaged    map[string]bool
	holds      map[string]int       // guarded by mu; layers that running pulls need, by name
	containers map[string]*rootInfo // guarded by mu; by key
	views      map[string]bool      // guarded by mu; keys of containers that are Views under way
}

// Open opens the store at o.Root, making it if it is not there, and removes what a crash left half made.
func Open(o Options) (*Store, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	s := &Store{
		opts:       o,
		log:        o.Log,
		remote:     remote.New(remote.Options{CertsDir: o.CertsDir, Stall: o.Stall, Backoff: o.Backoff, Bandwidth: o.Bandwidth}),
		slots:      make(chan struct{}, o.ParallelLayers),
		windows:    newWindows(),
		pinned:     make(map[string]bool),
		index:      newIndex(),
		layers:     make(map[string]*layer),
		damaged:    make(map[string]bool),
		holds:      make(map[string]int),
		containers: make(map[string]*rootInfo),
		views:      make(map[string]bool),
	}
	s.writable = newWalks(o.UsageAge, s.measureWritable)
	if s.platform, err = matcher(o.Platform); err != nil {
		return nil, err
	}
	for _, ref := range o.Pinned {
		named, err := Normalize(ref)
		if err != nil {
			return nil, fmt.Errorf("pinned image: %w", err)
		}
		s.pinned[named.String()] = true
	}
	if err := s.load(); err != nil {
		s.unlock()
		return nil, fmt.Errorf("open image store %s: %w", o.Root, err)
	}
	return s, nil
}

func (o Options) complete() (Options, error) {
	if !filepath.IsAbs(o.Root) {
		return o, fmt.Errorf("image store: root %q is not absolute: %w", o.Root, errdefs.ErrInvalidArgument)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Root = filepath.Clean(o.Root)
	if o.Hook == nil {
		o.Hook = func(string) {}
	}
	o.ParallelLayers = orDefault(o.ParallelLayers, 4)
	o.SyncDeadline = orDefault(o.SyncDeadline, 5*time.Minute)
	o.UsageAge = orDefault(o.UsageAge, 10*time.Second)
	o.Limits.Bytes = orDefault(o.Limits.Bytes, 128<<30)
	o.Limits.Entries = orDefault(o.Limits.Entries, 8_000_000)
	return o, nil
}

func orDefault[T int | int64 | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

func matcher(platform string) (platforms.MatchComparer, error) {
	if platform == "" {
		return platforms.Default(), nil
	}
	p, err := platforms.Parse(platform)
	if err != nil {
		return nil, fmt.Errorf("platform %q: %w: %w", platform, err, errdefs.ErrInvalidArgument)
	}
	return platforms.Only(p), nil
}

// load locks the root and reads what is there.
func (s *Store) load() error {
	for _, d := range []string{"", imagesDir, layersDir, treesDir, damagedDir, containersDir, stagingDir} {
		if err := os.MkdirAll(s.dir(d), 0o700); err != nil {
			return err
		}
	}
	// Containers in user namespaces pass through these to their own directories, and see nothing else.
	for _, d := range []string{"", containersDir} {
		if err := os.Chmod(s.dir(d), 0o711); err != nil {
			return err
		}
	}
	lock, err := os.OpenFile(filepath.Join(s.opts.Root, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	s.lock = lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another process has this store: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	s.projects = openProjects(s.dir(containersDir), s.opts.Projects, s.log)
	s.sync = newSyncer(func() error { return unix.Syncfs(int(lock.Fd())) }, s.opts.NoSync, s.opts.SyncDeadline)
	if err := s.readRecords(); err != nil {
		return err
	}
	for _, r := range s.index.all() {
		for _, l := range r.Layers {
			s.layers[l.Name] = l.layer()
		}
	}
	if err := s.readContainers(); err != nil {
		return err
	}
	return s.removeStrays()
}

// removeStrays removes layers that nothing names and whatever was being made or removed.
func (s *Store) removeStrays() error {
	entries, err := os.ReadDir(s.dir(layersDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if s.layers[e.Name()] == nil {
			s.log.Info("layer that nothing refers to is removed", slog.String("layer", e.Name()))
			if err = s.discard(s.layerPath(e.Name())); err != nil {
				return err
			}
		}
	}
	if err = s.readDamage(); err != nil {
		return err
	}
	if entries, err = os.ReadDir(s.dir(stagingDir)); err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(s.dir(stagingDir), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// readDamage learns which layers are damaged, and removes what is remembered of layers that are gone.
func (s *Store) readDamage() error {
	for _, dir := range []string{treesDir, damagedDir} {
		entries, err := os.ReadDir(s.dir(dir))
		if err != nil {
			return err
		}
		for _, e := range entries {
			switch {
			case s.layers[e.Name()] == nil:
				if err := os.Remove(filepath.Join(s.dir(dir), e.Name())); err != nil {
					return err
				}
			case dir == damagedDir:
				s.damaged[e.Name()] = true
			}
		}
	}
	return nil
}

// Close ends running pulls, waits for them and gives the root free. Mounts stay.
func (s *Store) Close() error {
	err := fmt.Errorf("the image store is closed: %w", errdefs.ErrUnavailable)
	s.pulls.close(err)
	s.fetches.close(err)
	s.unlock()
	return nil
}

func (s *Store) unlock() {
	if s.projects != nil {
		s.projects.close()
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

// Get finds an image by id, unambiguous beginning of an id, tag, digest or short name.
func (s *Store) Get(_ context.Context, ref string) (*pod.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.index.find(ref)
	if err != nil {
		return nil, err
	}
	return r.image(s.isPinned), nil
}

// List returns all images, in the order of their ids.
func (s *Store) List(context.Context) ([]*pod.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.index.all()
	images := make([]*pod.Image, len(all))
	for i, r := range all {
		images[i] = r.image(s.isPinned)
	}
	return images, nil
}

// Remove removes the image that ref names, with all its names. Layers that a container uses stay
// until the container is released. An absent image is no error.
func (s *Store) Remove(_ context.Context, ref string) error {
	s.commit.Lock()
	s.mu.Lock()
	r, err := s.index.find(ref)
	s.mu.Unlock()
	if err == nil {
		err = s.removeRecord(r.ID)
		s.opts.Hook("image/record removed")
	}
	if err == nil {
		s.mu.Lock()
		s.index.drop(r.ID)
		s.mu.Unlock()
	}
	s.commit.Unlock()
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.collect()
}

// Name gives names, tags or digests, to the image that ref names, takes the tags from the image that had
// them, and returns it. Without names it only looks. Who gives a digest vouches for it.
func (s *Store) Name(_ context.Context, ref string, names []string) (*pod.Image, error) {
	var canonical []string
	for _, name := range names {
		named, err := Normalize(name)
		if err != nil {
			return nil, err
		}
		canonical = append(canonical, named.String())
	}
	s.commit.Lock()
	defer s.commit.Unlock()
	s.mu.Lock()
	r, err := s.index.find(ref)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if err := s.publish(r, canonical); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index.byID[r.ID].image(s.isPinned), nil
}

// Untag removes one tag and leaves the image, which may then have no name but its digest and id.
func (s *Store) Untag(_ context.Context, tag string) error {
	named, err := Normalize(tag)
	if err != nil {
		return err
	}
	s.commit.Lock()
	defer s.commit.Unlock()
	s.mu.Lock()
	r := s.index.byID[s.index.byName[named.String()]]
	s.mu.Unlock()
	if r == nil {
		return fmt.Errorf("image %q: %w", tag, errdefs.ErrNotFound)
	}
	return s.replace(r.without(named.String()))
}

// replace writes r and makes it the record of its image. The caller holds commit.
func (s *Store) replace(r *record) error {
	if err := s.writeRecord(r); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index.put(r)
	return nil
}

func (s *Store) isPinned(name string) bool { return s.pinned[name] }

func (s *Store) dir(name string) string { return filepath.Join(s.opts.Root, name) }
