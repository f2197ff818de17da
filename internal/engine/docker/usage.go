package docker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"gantry/internal/pod"
)

// Docker walks every writable layer for an answer.
const (
	usageLife = 2 * time.Minute // how long an answer stands
	// usageLeast is the time between two questions when the answer lacks a container that is new, or
	// there was none.
	usageLeast = 10 * time.Second
	// usageOld is how long an answer stands while Docker gives no other: its question fails where a
	// container is removed meanwhile.
	usageOld = 10 * time.Minute
	// usageShare bounds what Docker is kept busy with: it rests so many times as long as it took.
	usageShare = 20
	// usageTries is how often a question is put that fails in dockerd.
	usageTries = 3
)

// usage remembers what Docker said its store occupies. One question is asked at a time, behind the
// calls: they get the last answer.
type usage struct {
	mu     sync.Mutex
	at     time.Time          // of the answer; guarded by mu
	images uint64             // bytes; guarded by mu
	layers uint64             // bytes; guarded by mu
	sizes  map[pod.Key]uint64 // bytes of writable layers; guarded by mu
	tried  time.Time          // when the last question was answered, or failed; guarded by mu
	took   time.Duration      // what it took; guarded by mu
	err    error              // guarded by mu
	asking chan struct{}      // closed when the answer is there, nil when none is waited for; guarded by mu
}

// Usage tells the bytes of images and of writable layers, both on the file system of Docker's root or
// of its containerd's. Only the first call waits; later ones get an answer of two minutes ago at most,
// and of longer ago only as long as Docker takes to find a new one, or for ten minutes while it finds none.
func (s *Images) Usage(ctx context.Context) (images, layers []pod.Usage, err error) {
	n, err := s.engine.node(ctx)
	if err != nil {
		return nil, nil, err
	}
	u := &s.usage
	u.mu.Lock()
	first := u.at.IsZero()
	if first || u.due(usageLife) || u.err != nil && u.due(usageLeast) {
		s.ask(context.WithoutCancel(ctx))
	}
	asking := u.asking
	u.mu.Unlock()
	if first {
		select {
		case <-asking:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("usage of docker's store: %w", context.Cause(ctx))
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil && time.Since(u.at) > usageOld {
		return nil, nil, fmt.Errorf("usage of docker's store: %w", u.err)
	}
	root := n.storeRoot()
	return []pod.Usage{{Mountpoint: root, At: u.at, Bytes: u.images}}, []pod.Usage{{Mountpoint: root, At: u.at, Bytes: u.layers}}, nil
}

// LayerUsage tells the size of a container's writable layer as Docker last said it, with the time of
// that; nil while it has not. It never waits: Docker is asked behind it, about all at once.
func (s *Images) LayerUsage(key string) (*pod.Usage, error) {
	if _, ok := s.engine.objects.get(pod.Key(key)); !ok {
		return nil, fmt.Errorf("writable layer of %s: %w", key, errdefs.ErrNotFound)
	}
	u := &s.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	bytes, told := u.sizes[pod.Key(key)]
	if u.due(usageLife) || !told && u.due(usageLeast) {
		s.ask(context.Background())
	}
	n := s.engine.known.Load()
	if !told || n == nil {
		return nil, nil
	}
	return &pod.Usage{Mountpoint: n.storeRoot(), At: u.at, Bytes: bytes}, nil
}

// due says whether the last question is so long ago that Docker may be asked again. The lock is held.
func (u *usage) due(age time.Duration) bool {
	return time.Since(u.tried) > max(age, usageShare*u.took)
}

// ask has Docker asked, once at a time. The lock is held.
func (s *Images) ask(ctx context.Context) {
	if s.usage.asking == nil {
		s.usage.asking = make(chan struct{})
		go s.measure(ctx, s.usage.asking)
	}
}

func (s *Images) measure(ctx context.Context, done chan struct{}) {
	d, u, began := s.engine.daemon, &s.usage, time.Now()
	var r client.DiskUsageResult
	var err error
	for range usageTries {
		r, err = call(ctx, d, func(ctx context.Context) (client.DiskUsageResult, error) {
			return d.api.DiskUsage(ctx, client.DiskUsageOptions{Images: true, Containers: true, Verbose: true})
		})
		if !errdefs.IsInternal(err) {
			break
		}
		err = fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err) // another question may be answered
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	defer close(done)
	u.asking, u.err, u.tried, u.took = nil, err, time.Now(), time.Since(began)
	if err != nil {
		return // the next call asks again
	}
	u.at = u.tried
	u.sizes = make(map[pod.Key]uint64, len(r.Containers.Items))
	for i := range r.Containers.Items {
		c := &r.Containers.Items[i]
		if key := s.engine.keyOf(c.ID, c.Labels); key != "" {
			u.sizes[key] = uint64(max(c.SizeRw, 0))
		}
	}
	u.images, u.layers = uint64(max(r.Images.TotalSize, 0)), uint64(max(r.Containers.TotalSize, 0))
}

// storeRoot is the directory that images lie below. The kubelet wants one that is there, else it evicts nothing:
// where containerd's is not where it usually is, Docker's own is told.
func (n *node) storeRoot() string {
	root := n.usualRoot()
	if _, err := os.Stat(root); err != nil {
		return n.info.DockerRootDir
	}
	return root
}

// usualRoot is Docker's own directory for a graph driver, containerd's where it keeps the images.
func (n *node) usualRoot() string {
	for _, pair := range n.info.DriverStatus {
		if pair[0] != "driver-type" || !strings.HasPrefix(pair[1], "io.containerd.snapshotter") {
			continue
		}
		if c := n.info.Containerd; c != nil && !strings.HasPrefix(c.Address, "/run/containerd/") && !strings.HasPrefix(c.Address, "/var/run/containerd/") {
			return filepath.Join(n.info.DockerRootDir, "containerd")
		}
		return "/var/lib/containerd"
	}
	return n.info.DockerRootDir
}
