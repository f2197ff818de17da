package docker

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/client"

	"gantry/internal/pod"
)

// usageLife is how long an answer stands. Docker walks every writable layer for it.
const usageLife = 2 * time.Minute

// usage remembers what Docker said its store occupies. One question is asked at a time, behind the
// calls: they get the last answer.
type usage struct {
	mu     sync.Mutex
	at     time.Time     // of the answer; guarded by mu
	images uint64        // bytes; guarded by mu
	layers uint64        // bytes; guarded by mu
	err    error         // guarded by mu
	asking chan struct{} // closed when the answer is there, nil when none is waited for; guarded by mu
}

// Usage tells the bytes of images and of writable layers, both on the file system of Docker's root or
// of its containerd's. Only the first call waits; later ones get an answer of two minutes ago at most,
// and of longer ago only as long as Docker takes to find a new one.
func (s *Images) Usage(ctx context.Context) (images, layers []pod.Usage, err error) {
	n, err := s.engine.node(ctx)
	if err != nil {
		return nil, nil, err
	}
	u := &s.usage
	u.mu.Lock()
	first, asking := u.at.IsZero(), u.asking
	if asking == nil && time.Since(u.at) > usageLife {
		asking = make(chan struct{})
		u.asking = asking
		go s.measure(context.WithoutCancel(ctx), asking)
	}
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
	if u.err != nil {
		return nil, nil, fmt.Errorf("usage of docker's store: %w", u.err)
	}
	root := n.storeRoot()
	return []pod.Usage{{Mountpoint: root, At: u.at, Bytes: u.images}}, []pod.Usage{{Mountpoint: root, At: u.at, Bytes: u.layers}}, nil
}

func (s *Images) measure(ctx context.Context, done chan struct{}) {
	d, u := s.engine.daemon, &s.usage
	r, err := call(ctx, d, func(ctx context.Context) (client.DiskUsageResult, error) {
		return d.api.DiskUsage(ctx, client.DiskUsageOptions{Images: true, Containers: true})
	})
	u.mu.Lock()
	defer u.mu.Unlock()
	defer close(done)
	u.asking, u.err = nil, err
	if err != nil {
		return // the next call asks again
	}
	u.at = time.Now()
	u.images, u.layers = uint64(max(r.Images.TotalSize, 0)), uint64(max(r.Containers.TotalSize, 0))
}

// storeRoot is the directory that images lie below: Docker's own for a graph driver, containerd's where
// it keeps them.
func (n *node) storeRoot() string {
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
