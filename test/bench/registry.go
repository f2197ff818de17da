package main

import (
	"context"
	"fmt"
	"net"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/labimage"
	"gantry/internal/netns"
)

// registryAddress is the same in every runtime's network.
const registryAddress = "127.0.0.1:5000"

// registry is one for all runtimes, in this process, so that what it costs is nobody's.
type registry struct {
	*labimage.Server
	pod   string // the image that pods run
	pause string // what containerd and Docker run in every pod beside it
	big   []pull // what is pulled in the part of that name
}

// serve starts the registry with the images that every runtime needs.
func serve() (*registry, error) {
	s, err := labimage.Serve(labimage.Config{Listen: registryAddress})
	if err != nil {
		return nil, err
	}
	r := &registry{Server: s}
	for _, i := range []struct {
		ref    *string
		name   string
		change func(*v1.Config)
	}{
		{&r.pod, "bench/busybox:1", func(*v1.Config) {}},
		{&r.pause, "bench/pause:1", func(c *v1.Config) { c.Entrypoint, c.Cmd = []string{"/bin/sleep", "100000000"}, nil }},
	} {
		img, err := labimage.Busybox(i.change)
		if err == nil {
			*i.ref, err = s.Push(i.name, img)
		}
		if err != nil {
			s.Close()
			return nil, err
		}
	}
	return r, nil
}

// join lets the registry answer in the network namespace of a process as well.
func (r *registry) join(ctx context.Context, pid int) error {
	return netns.Do(fmt.Sprintf("/proc/%d/ns/net", pid), func() error {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", registryAddress)
		if err == nil {
			r.ServeAt(l)
		}
		return err
	})
}
