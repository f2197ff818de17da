package main

import (
	"context"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/labimage"
)

// registryAddress is the same in every runtime's network.
const registryAddress = "127.0.0.1:5000"

type source struct {
	name   string
	change func(*v1.Config)
}

// images are what runtimes need: what pods run, and what containerd runs in every pod beside it.
func images() []source {
	return []source{
		{"bench/busybox:1", func(*v1.Config) {}},
		{"bench/pause:1", func(c *v1.Config) { c.Entrypoint, c.Cmd = []string{"/bin/sleep", "100000000"}, nil }},
	}
}

// serveImages serves the images until ctx ends and prints their references, a line each.
func serveImages(ctx context.Context) error {
	s, err := labimage.Serve(labimage.Config{Listen: registryAddress})
	if err != nil {
		return err
	}
	defer s.Close()
	for _, i := range images() {
		img, err := labimage.Busybox(i.change)
		if err != nil {
			return err
		}
		ref, err := s.Push(i.name, img)
		if err != nil {
			return err
		}
		fmt.Println(ref)
	}
	<-ctx.Done()
	return nil
}
