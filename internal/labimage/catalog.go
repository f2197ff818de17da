package labimage

import (
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Catalog pushes the images that demonstrations and crictl tests use and returns their references:
//
//	busybox:latest   a shell with its applets
//	web:latest       answers Page on port 80
//	counter:latest   writes a numbered line a second
//	user:latest      busybox that runs as uid 1000 by name
//	volume:latest    busybox with a volume /data and a label
func (s *Server) Catalog() ([]string, error) {
	images := []struct {
		name string
		make func() (v1.Image, error)
	}{
		{"busybox:latest", func() (v1.Image, error) { return Busybox() }},
		{"web:latest", Web},
		{"counter:latest", func() (v1.Image, error) {
			return Busybox(func(c *v1.Config) {
				c.Cmd = []string{"sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i; sleep 1; done"}
			})
		}},
		{"user:latest", func() (v1.Image, error) {
			return Busybox(func(c *v1.Config) { c.User = "gantry"; c.WorkingDir = "/home/gantry" })
		}},
		{"volume:latest", func() (v1.Image, error) {
			return Busybox(func(c *v1.Config) { c.Volumes = map[string]struct{}{"/data": {}} })
		}},
	}
	refs := make([]string, 0, len(images))
	for _, i := range images {
		img, err := i.make()
		if err != nil {
			return nil, fmt.Errorf("lab image %s: %w", i.name, err)
		}
		ref, err := s.Push(i.name, img)
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	return refs, nil
}
