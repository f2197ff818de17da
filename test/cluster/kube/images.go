package kube

import (
	"fmt"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"gantry/internal/labimage"
)

// Images that the cluster's registry has.
const (
	Busybox = registry + "/busybox:1" // a shell and its applets
	Web     = registry + "/web:1"     // answers labimage.Page on port 80
	Agnhost = registry + "/agnhost:1" // Kubernetes' own test image, on busybox
	Pause   = registry + "/pause:1"   // does nothing, for runtimes that want it
)

// Locked is an image of the registry LockedHost, which gives it to who shows User and Password for a token.
const (
	LockedHost = lockedRegistry
	Locked     = lockedRegistry + "/locked:1"
	User       = "lab"
	Password   = "open sesame"
)

// Mirrored is Busybox by the name of a registry that nobody can reach; the nodes know a mirror of it.
const (
	mirrored = "mirrored.example"
	Mirrored = mirrored + "/busybox:1"
)

func (c *Cluster) pushImages() {
	c.t.Helper()
	for _, i := range []struct {
		name string
		make func() (v1.Image, error)
	}{
		{"busybox:1", func() (v1.Image, error) { return labimage.Busybox() }},
		{"web:1", labimage.Web},
		{"agnhost:1", c.agnhost},
		{"pause:1", func() (v1.Image, error) {
			return labimage.Busybox(func(c *v1.Config) { c.Entrypoint, c.Cmd = []string{"/bin/sleep", "100000000"}, nil })
		}},
	} {
		img, err := i.make()
		c.check("image "+i.name, err)
		_, err = c.Registry.Push(i.name, img)
		c.check("image "+i.name, err)
	}
	locked := labimage.Registry(c.t, labimage.Config{
		Listen: lockedRegistry, Auth: &labimage.Auth{User: User, Password: Password, Token: "let-in"},
	})
	img, err := labimage.Busybox(func(c *v1.Config) { c.Labels = map[string]string{"kept": "locked"} }) // an image of its own
	c.check("image "+Locked, err)
	_, err = locked.Push("locked:1", img)
	c.check("image "+Locked, err)
}

func (c *Cluster) agnhost() (v1.Image, error) {
	return c.programImage("agnhost", "agnhost", func(c *v1.Config) { c.Entrypoint, c.Cmd = []string{"/agnhost"}, []string{"pause"} })
}

// programImage is one of Kubernetes' programs at a path, on busybox.
func (c *Cluster) programImage(program, path string, changes ...func(*v1.Config)) (v1.Image, error) {
	data, err := os.ReadFile(Program(c.t, program))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", program, err)
	}
	tar, err := labimage.Tar(labimage.File(path, 0o755, string(data)))
	if err != nil {
		return nil, err
	}
	layer, err := labimage.Layer(tar, labimage.Gzip)
	if err != nil {
		return nil, err
	}
	base, err := labimage.Busybox(changes...)
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(base, layer)
}
